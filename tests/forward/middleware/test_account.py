"""Each retry and failure is one log line with the fields to search by; a success is logged at debug only."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from handlers.contract.request import Request
from handlers.contract.result import ErrorCode, answered_result, error_result
from handlers.forward.middleware.account import account
from handlers.forward.outcome import Answered, LastResponse, Outcome, Retry
from handlers.settings.settings import load_settings
from handlers.telemetry.logs import (
    CurrentTrace,
    configure_logs,
    current_trace,
    get_logger,
    hashed_id,
)

NOW = 1_700_000_100.0
REQUEST = Request(
    id="me@example.com",
    queue="q",
    deadline=NOW + 60,
    created=NOW - 5.25,
    attempt=2,
    payload=b'{"prompt": "a secret"}',
)
TRACE = CurrentTrace("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", is_sampled=True)


@pytest.fixture(autouse=True)
def unchanged_logging() -> Iterator[None]:
    """Handlers and levels are the process's: put them back."""
    root, ours = logging.getLogger(), logging.getLogger("async_processor")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


def lines_of(outcome: Outcome, **variables: str) -> list[dict[str, Any]]:
    """The log of an outcome with these settings."""
    out = io.StringIO()
    configure_logs(load_settings({"LOG_FORMAT": "json", **variables}).log_options, out)
    token = current_trace.set(TRACE)
    try:
        account(REQUEST, outcome, now=NOW, seconds=1.2345, log=get_logger("poller"), metrics=None)
    finally:
        current_trace.reset(token)
    assert "secret" not in out.getvalue()
    return [json.loads(line) for line in out.getvalue().splitlines()]


KNOWN = {"id": "me@example.com", "queue": "q", "attempt": 3, "seconds": 1.234, "severity": "INFO"}
KNOWN |= {"trace_id": TRACE.trace_id, "span_id": TRACE.span_id}


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        (
            Retry(3.0, "rejected", LastResponse(429, b"busy: a secret")),
            {"event": "retry", "outcome": "retry", "reason": "rejected", "status": 429, "delay_seconds": 3.0},
        ),
        (
            Answered(answered_result("me@example.com", "", 404, b"no such secret")),
            {"event": "answered", "outcome": "failed", "status": 404, "reason": "", "total_seconds": 5.25},
        ),
        (
            Answered(error_result("me@example.com", "", ErrorCode.DEADLINE_EXCEEDED, "late")),
            {"event": "answered", "outcome": "expired", "status": 0, "reason": "DEADLINE_EXCEEDED"},
        ),
    ],
    ids=["retry", "failed", "expired"],
)
def test_a_line_has_id_outcome_reason_and_duration(outcome: Outcome, message: dict[str, Any]) -> None:
    (line,) = lines_of(outcome)
    wanted = KNOWN | message
    assert {name: line.get(name) for name in wanted} == wanted


GOOD = Answered(answered_result("me@example.com", "", 200, b"a secret"))


def test_a_success_is_logged_at_debug() -> None:
    assert lines_of(GOOD) == []
    (line,) = lines_of(GOOD, LOG_LEVEL="debug")
    assert (line["outcome"], line["severity"]) == ("success", "DEBUG")


def test_ids_are_hashed_if_configured() -> None:
    (line,) = lines_of(GOOD, LOG_LEVEL="debug", LOG_HASH_IDS="true")
    assert line["id"] == hashed_id("me@example.com")
    assert "example.com" not in json.dumps(line)


def test_on_google_cloud_the_line_is_found_from_its_trace() -> None:
    (line,) = lines_of(GOOD, LOG_LEVEL="debug", PROJECT_ID="my-project")
    assert line["logging.googleapis.com/trace"] == f"projects/my-project/traces/{TRACE.trace_id}"
    assert line["logging.googleapis.com/spanId"] == TRACE.span_id


def test_in_a_terminal_the_output_is_for_people() -> None:
    out = io.StringIO()
    configure_logs(load_settings({"LOG_FORMAT": "text"}).log_options, out)
    account(REQUEST, Retry(3.0, "rejected"), now=NOW, seconds=1.0, log=get_logger("poller"), metrics=None)
    assert "poller: retry id=me@example.com queue=q attempt=3 outcome=retry reason=rejected" in out.getvalue()
