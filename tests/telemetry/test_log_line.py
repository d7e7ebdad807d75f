"""A log line cannot be forged, leaks nothing, is bounded, and is never lost."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.telemetry.logs import (
    LONGEST_LINE,
    LONGEST_TEXT,
    CurrentTrace,
    LogOptions,
    configure_logs,
    current_trace,
    get_logger,
    hashed_id,
    json_line,
    text_line,
)

TRACE = CurrentTrace("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", is_sampled=True)


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root, ours, hook = logging.getLogger(), logging.getLogger("async_processor"), sys.excepthook
    before = (root.handlers[:], root.level, ours.level)
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])
    sys.excepthook = hook


def logged(options: LogOptions, *events: tuple[str, dict[str, Any]], level: str = "info") -> list[dict[str, Any]]:
    return [json.loads(line) for line in text_of(options, *events, level=level).splitlines()]


def text_of(options: LogOptions, *events: tuple[str, dict[str, Any]], level: str = "info") -> str:
    out = io.StringIO()
    configure_logs(options, out)
    for event, fields in events:
        getattr(get_logger("poller"), level)(event, **fields)
    return out.getvalue()


JSON = LogOptions(form="json")


@pytest.mark.parametrize(
    ("level", "severity"), [("debug", "DEBUG"), ("info", "INFO"), ("warning", "WARNING"), ("error", "ERROR")]
)
def test_severities_are_those_of_cloud_logging(level: str, severity: str) -> None:
    (line,) = logged(LogOptions(level="debug", form="json"), ("x", {}), level=level)
    assert line["severity"] == severity


def test_below_the_lowest_level_no_line_is_built() -> None:
    class Unwanted:
        def __str__(self) -> str:
            raise AssertionError("built although it is not logged")

    assert text_of(LogOptions(level="warning", form="json"), ("answered", {"value": Unwanted()})) == ""


NASTY = [
    "a\r\nb",
    '{"severity": "ERROR"}\n{"event": "forged"}',
    "\x1b[2J\x1b]0;title\x07",
    "\x7f\x85\x9b31m",
    "\u2028\u2029\u202e\ufeff\u200b\U000e0041",
    "%s %d {} {0!r}",
    "\ud800 lone",
    '"quoted" \\back',
    "\0",
]


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
@pytest.mark.parametrize("form", ["json", "text"])
def test_no_text_forges_a_line_or_commands_a_terminal(text: str, form: str) -> None:
    shown = text_of(LogOptions(form=form), ("retry", {"id": text, "reason": text}), (text, {}))
    lines = shown.removesuffix("\n").split("\n")
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)
    if form == "json":
        ids = [json.loads(line).get("id") for line in lines]
        assert ids == [text.encode("utf-8", "backslashreplace").decode(), None]


class Odd:
    """Cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


ODD = {
    "a huge integer": 10**5_000,
    "not a number": float("nan"),
    "infinity": float("inf"),
    "an object": Odd(),
    "objects in a list": [Odd()],
    "bytes": b"\xff",
    "keys that are not strings": {1: {2: 3}},
    "keys that no JSON has": {("a",): 1},
    "more than 64 bits": 2**64,
    "a set": {1, 2},
}


@pytest.mark.parametrize("kind", ODD)
def test_an_unusual_value_does_not_lose_the_event(kind: str) -> None:
    (line,) = logged(JSON, ("answered", {"id": "a", "value": ODD[kind]}))
    assert (line["event"], line["id"]) == ("answered", "a")


def test_a_value_that_contains_itself_does_not_lose_the_event() -> None:
    value: list[Any] = []
    value.append(value)
    (line,) = logged(JSON, ("answered", {"id": "a", "value": value}))
    assert line["id"] == "a"


@given(st.dictionaries(st.text(min_size=1), st.one_of(st.text(), st.integers(), st.floats(), st.binary())))
def test_every_line_is_json_and_printable(fields: dict[str, Any]) -> None:
    line = json_line(fields)
    assert line.isprintable()
    assert isinstance(json.loads(line), dict)
    assert text_line("at", "event", fields).isprintable()


def test_long_text_is_cut_but_an_id_is_not() -> None:
    (line,) = logged(JSON, ("retry", {"id": "i" * 1_024, "error": "e" * 100_000}))
    assert line["id"] == "i" * 1_024
    assert len(line["error"]) == LONGEST_TEXT + 1


def test_the_length_of_a_line_is_bounded() -> None:
    (line,) = logged(JSON, ("polling", {"queues": ["q" * 500] * 1_000, "exception": "x" * 10**6, "id": "i" * 10**6}))
    assert len(json.dumps(line)) < LONGEST_LINE


@pytest.mark.parametrize(
    "text",
    [
        "connecting to redis://:canary-secret@redis:6379/0",
        "redis://user:canary-secret@[::1]:6379 does not answer",
        "redis://user:canary/se@cret@redis:6379",
        "authorization: Bearer canary-secret.abc_def",
        "Authorization: Basic canary-secret==",
        "BEARER canary-secret",
        "no answer of http://metrics:9090/m?x=1&api-key=canary-secret",
        "Max retries exceeded with url: /v1/traces?token=canary-secret",
        "pushes to https://door/push?sig=canary-secret#a",
    ],
)
@pytest.mark.parametrize("form", ["json", "text"])
def test_credentials_are_masked(text: str, form: str) -> None:
    out = io.StringIO()
    configure_logs(LogOptions(form=form), out)
    get_logger("poller").error("failed", error=text)
    try:
        raise RuntimeError(text)
    except RuntimeError:
        logging.getLogger("some.library").exception(text)
    assert "canary" not in out.getvalue()
    assert "***" in out.getvalue()


def test_ids_may_be_hashed_and_found_again() -> None:
    (line,) = logged(LogOptions(form="json", hash_ids=True), ("answered", {"id": "anna@example.org"}))
    assert line["id"] == hashed_id("anna@example.org")
    assert "anna" not in json.dumps(line)


def test_the_current_trace_is_named() -> None:
    token = current_trace.set(TRACE)
    try:
        (line,) = logged(JSON, ("answered", {}))
    finally:
        current_trace.reset(token)
    assert (line["trace_id"], line["span_id"]) == (TRACE.trace_id, TRACE.span_id)
    assert "trace_id" not in logged(JSON, ("answered", {}))[0]


def test_on_google_cloud_the_log_viewer_finds_text_and_trace() -> None:
    token = current_trace.set(TRACE)
    try:
        (line,) = logged(LogOptions(form="json", project_id="my-project"), ("answered", {}))
    finally:
        current_trace.reset(token)
    assert line["message"] == "answered"
    assert line["logging.googleapis.com/trace"] == f"projects/my-project/traces/{TRACE.trace_id}"
    assert line["logging.googleapis.com/spanId"] == TRACE.span_id
    assert line["logging.googleapis.com/trace_sampled"] is True


def test_an_event_may_name_a_trace_of_its_own() -> None:
    other = "f" * 32
    token = current_trace.set(TRACE)
    try:
        (line,) = logged(LogOptions(form="json", project_id="p"), ("answered", {"trace_id": other}))
    finally:
        current_trace.reset(token)
    assert line["logging.googleapis.com/trace"] == f"projects/p/traces/{other}"
    assert "logging.googleapis.com/spanId" not in line


def test_text_is_for_people() -> None:
    shown = text_of(LogOptions(form="text"), ("answered", {"id": "a b", "seconds": 1.5, "error": ""}))
    _, rest = shown.split(" ", 1)
    assert rest == 'info    poller: answered id="a b" seconds=1.5 error=""\n'


def test_a_terminal_gets_text_and_a_pipe_gets_json() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for out, is_json in ((Terminal(), False), (io.StringIO(), True)):
        configure_logs(LogOptions(), out)
        get_logger("poller").info("ready")
        assert out.getvalue().startswith("{") is is_json


def test_foreign_log_handlers_can_read_our_records(caplog: pytest.LogCaptureFixture) -> None:
    configure_logs(JSON, io.StringIO())
    logging.getLogger().addHandler(caplog.handler)
    get_logger("poller").warning("lease lost", queue="q")
    assert caplog.messages == ["lease lost"]
    assert "lease lost" in caplog.text


def test_an_uncaught_exception_is_logged_as_a_line() -> None:
    program = (
        "from handlers.telemetry.logs import LogOptions, configure_logs\n"
        "configure_logs(LogOptions(form='json'))\n"
        "raise RuntimeError('redis://:canary@h')\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    line = json.loads(ended.stderr)
    assert line["severity"] == "CRITICAL"
    assert "RuntimeError: redis://***@h" in line["exception"]
