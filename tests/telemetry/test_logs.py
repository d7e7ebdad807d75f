"""Logs: one event, one line, whatever a request holds; valid JSON; nothing below the lowest level."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handlers.telemetry.logs import LogOptions, RareWarning, configure_logs, get_logger

HOSTILE = [
    "a\r\nb",
    "\x1b[31mred",
    "%s %d {}",
    "a\u2028b",
    "\0",
    '"},{"',
    "\ud800",
    "x" * 100_000,
    "\x7f",
    "é",
]


@pytest.fixture(autouse=True)
def unchanged_logging() -> Iterator[None]:
    """Handlers and levels are the process's: put them back."""
    root, ours = logging.getLogger(), logging.getLogger("async_processor")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


def logged(form: str, event: str, project_id: str = "", **fields: Any) -> str:
    out = io.StringIO()
    configure_logs(LogOptions(form=form, project_id=project_id), out)
    get_logger("poller").info(event, **fields)
    return out.getvalue()


def test_a_line_has_time_severity_part_and_event() -> None:
    line = json.loads(logged("json", "answered", id="a", attempt=2))
    assert line.pop("time").endswith("+00:00")
    assert line == {"severity": "INFO", "part": "poller", "event": "answered", "id": "a", "attempt": 2}


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_id_stays_in_its_line_of_json(text: str) -> None:
    """F76."""
    out = logged("json", text, id=text)
    assert out.count("\n") == 1
    assert out.endswith("\n")
    line = json.loads(out)
    assert line["severity"] == "INFO"
    assert len(out) < 8_000


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_id_stays_in_its_line_of_text(text: str) -> None:
    out = logged("text", "answered", id=text)
    assert out.count("\n") == 1
    assert out[:-1].isprintable()
    assert len(out) < 4_000


@pytest.mark.parametrize("name", ["time", "severity", "part"])
def test_an_event_field_cannot_replace_a_common_field(name: str) -> None:
    line = json.loads(logged("json", "answered", **{name: "forged"}))
    assert line[name] != "forged"


VALUES = st.none() | st.booleans() | st.floats() | st.text() | st.binary() | st.lists(st.text()) | st.integers()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fields=st.dictionaries(st.sampled_from(["id", "queue", "error", "x"]), VALUES),
    form=st.sampled_from(["json", "text"]),
)
def test_any_logged_value_is_one_line(fields: dict[str, Any], form: str) -> None:
    out = logged(form, "answered", **fields)
    assert out.count("\n") == 1
    if form == "json":
        json.loads(out)


def test_events_below_the_level_are_not_logged() -> None:
    out = io.StringIO()
    configure_logs(LogOptions(level="warning", form="json"), out)
    log = get_logger("poller")
    log.debug("a")
    log.info("b")
    log.warning("c")
    log.error("d")
    assert [json.loads(line)["event"] for line in out.getvalue().splitlines()] == ["c", "d"]


def test_auto_is_json_without_a_terminal() -> None:
    assert logged("auto", "answered").startswith("{")


def test_a_trace_is_linked_if_a_google_project_is_set() -> None:
    line = json.loads(logged("json", "answered", "my-project", trace_id="abc"))
    assert line["logging.googleapis.com/trace"] == "projects/my-project/traces/abc"
    assert "logging.googleapis.com/trace" not in json.loads(logged("json", "answered", trace_id="abc"))


@pytest.mark.parametrize("form", ["json", "text"])
def test_lines_of_libraries_have_the_same_form(form: str) -> None:
    out = io.StringIO()
    configure_logs(LogOptions(form=form), out)
    logging.getLogger("uvicorn.error").warning("slow %s", "client")
    logging.getLogger("other").info("chatter")
    assert out.getvalue().count("\n") == 1
    assert "slow client" in out.getvalue()


def test_an_exception_is_one_line_of_json() -> None:
    out = io.StringIO()
    configure_logs(LogOptions(form="json"), out)
    try:
        raise ValueError("broken\nin two")
    except ValueError:
        logging.getLogger("other").exception("failed")
    (line,) = out.getvalue().splitlines()
    assert "ValueError: broken\nin two" in json.loads(line)["exception"]


def test_two_thousand_refusals_of_a_minute_are_two_lines(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    warning = RareWarning(get_logger("test"), "caller refused", lambda: now)
    for _ in range(2_000):
        warning.report(status=401)
    now = 60.0
    warning.report(status=403)
    assert [record.getMessage() for record in caplog.records] == ["caller refused"] * 2
    assert [getattr(record, "fields", {}).get("count") for record in caplog.records] == [1, 2_000]
