"""Inconsistent settings of other event sources stop the start and are named."""

from __future__ import annotations

import pytest

from handlers.contract.errors import InvalidSetting
from handlers.settings.settings import Settings, load_settings
from handlers.telemetry.logs import get_logger
from handlers.wiring.dispatch_door import event_fields, event_sink


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
