"""A line that strangers can cause is logged once a minute, and nothing of the count is lost."""

from __future__ import annotations

import pytest

from handlers.telemetry.logs import get_logger
from handlers.telemetry.rare_warning import RareWarning


def test_two_thousand_refusals_of_a_minute_are_two_lines(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    warning = RareWarning(get_logger("test"), "caller refused", lambda: now)
    for _ in range(2_000):
        warning.tell(status=401)
    now = 60.0
    warning.tell(status=403)
    assert [record.getMessage() for record in caplog.records] == ["caller refused"] * 2
    assert [getattr(record, "fields", {}).get("count") for record in caplog.records] == [1, 2_000]
