"""Inconsistent settings of other event sources stop the start; refused callers cost one log line a minute."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.requests import Request

from handlers.contract.errors import InvalidSetting
from handlers.settings.settings import Settings, load_settings
from handlers.telemetry.logs import get_logger
from handlers.wiring.dispatch_door import event_fields, event_sink
from handlers.wiring.handler import Handler


def settings(**variables: str) -> Settings:
    return load_settings({"IGW_BASE_URL": "http://127.0.0.1:1", **variables})


def test_without_settings_events_are_taken_as_they_are() -> None:
    assert event_fields(settings()) is None
    assert event_sink(settings(), get_logger("test"), []) is None


@pytest.mark.parametrize("name", ["EVENT_ID_FROM", "EVENT_TENANT_FROM", "EVENT_DEADLINE_FROM"])
@pytest.mark.parametrize("value", ["a b", "header:", "header:x\ty", "é"])
def test_a_name_that_no_event_has_is_refused(name: str, value: str) -> None:
    with pytest.raises(InvalidSetting, match=name):
        event_fields(settings(**{name: value}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("K_CE_OVERRIDES", '{"extensions":{"Bad-Name":"x"}}'),
        ("K_CE_OVERRIDES", '{"extensions":{"type":"x"}}'),
        ("K_SINK", "broker:80"),
        ("K_CE_OVERRIDES", "{"),
        ("K_CE_OVERRIDES", "[]"),
        ("K_CA_CERTS", "x"),
    ],
)
def test_an_invalid_sink_stops_the_start(name: str, value: str) -> None:
    with pytest.raises(InvalidSetting, match=name):
        event_sink(settings(**{"K_SINK": "http://sink", name: value}), get_logger("test"), [])


@pytest.mark.parametrize("path", ["/", "/metrics"])
async def test_callers_without_a_token_cost_one_log_line_a_minute(path: str, caplog: pytest.LogCaptureFixture) -> None:
    async def receive() -> dict[str, Any]:
        raise AssertionError("the body of a refused request was read")

    token = "a-token-for-the-poller"
    handler = Handler(settings(DISPATCH_TOKEN=token, METRICS_TOKEN=token), "dispatch")
    method = "POST" if path == "/" else "GET"
    for number in range(50):
        headers = [(b"authorization", b"Bearer %d" % number)] if number % 2 else []
        scope = {"type": "http", "method": method, "path": path, "headers": headers, "query_string": b""}
        assert (await handler.respond(Request(scope, receive))).status_code == 401
    await handler.aclose()
    assert [record.getMessage() for record in caplog.records] == ["caller refused"]
