"""What happens to a test whose server is not on this machine: skipped and named, or failed. Decided here."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

REQUIRE_ALL = "REQUIRE_ALL_SERVERS"
"""Environment variable; set to anything but 0, it makes a missing server a failure (`.ci/run` sets it)."""

_SKIPPED = "not found: "


def not_found(server: str, remedy: str) -> NoReturn:
    """End the test: `server` could not be found, `remedy` says how it is had (`apt install prometheus`)."""
    reason = f"{_SKIPPED}{server} ({remedy})"
    if os.environ.get(REQUIRE_ALL, "0") not in ("", "0"):
        pytest.fail(f"{reason}; {REQUIRE_ALL} is set", pytrace=False)
    pytest.skip(reason)


def skipped_for_want_of(reason: str) -> str:
    """The server and its remedy out of a skip's reason; empty if the test was skipped for another reason."""
    _, is_ours, rest = reason.partition(_SKIPPED)
    return rest if is_ours else ""
