"""Attributes fill missing fields of another source's data; fields in the data win."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.contract.errors import InvalidRequest
from handlers.contract.events import Event
from handlers.contract.request import decode_body
from handlers.doors.cloudevents.foreign_event import EventFields, as_request
from handlers.doors.door import Delivery
from tests.contract.json_texts import JSON, broken, text

NOW = 1_700_000_000.0
WHOLE = b'{"id":"own","deadline":5,"payload":{"x": 1.0},"metadata":{"userid":"me"}}'


def event(data: bytes, **extensions: str) -> Event:
    return Event(id="e-1", source="/s", type="t", data=data, extensions=extensions)


def filled(data: bytes, fields: EventFields, headers: dict[str, str] | None = None, **extensions: str) -> Any:
    wire = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    return json.loads(as_request(event(data, **extensions), Delivery(wire, data), fields, NOW))


ALL = EventFields("id", "team", "due", 60.0)


def test_fields_of_the_data_win() -> None:
    found = filled(WHOLE, ALL, due="99")
    assert (found["id"], found["deadline"], found["metadata"]) == ("own", 5, {"userid": "me"})


def test_the_operators_tenant_wins_over_the_datas() -> None:
    found = filled(WHOLE, ALL, team="red", due="99")
    assert (found["id"], found["deadline"], found["metadata"]) == ("own", 5, {"userid": "red"})


def test_a_payload_stays_byte_for_byte() -> None:
    data = b'{"id":"a","payload":{ "x" : 1.0,"y":[ ] }}'
    whole = as_request(event(data), Delivery([], data), ALL, NOW)
    assert b'{ "x" : 1.0,"y":[ ] }' in whole


@pytest.mark.parametrize("metadata", [{}, {"metadata": None}, {"metadata": {"other": "1"}}])
def test_the_tenant_joins_the_metadata(metadata: dict[str, Any]) -> None:
    found = filled(json.dumps({"payload": {}, **metadata}).encode(), ALL, team="red")
    assert found["metadata"]["userid"] == "red"


def test_a_header_can_be_the_source_of_a_field() -> None:
    fields = EventFields(id_from="header:X-Request-Id", deadline_from="header:x-due")
    found = filled(b'{"payload":{}}', fields, {"x-request-id": "h-1", "x-due": "77.5"})
    assert (found["id"], found["deadline"]) == ("h-1", 77.5)


@pytest.mark.parametrize(
    ("extensions", "expected"),
    [
        ({}, NOW + 60),
        ({"time": "2023-11-14T22:13:20Z"}, NOW + 60),
        ({"time": "2023-11-14T23:13:20+01:00"}, NOW + 60),
        ({"due": "1234"}, 1234.0),
        ({"due": "2023-11-14T22:13:20Z"}, NOW),
        ({"due": "2023-11-14t22:13:20.000000000z"}, NOW),
    ],
)
def test_a_deadline_is_given_or_follows_from_the_events_time(extensions: dict[str, str], expected: float) -> None:
    assert filled(b'{"id":"a","payload":{}}', ALL, None, **extensions)["deadline"] == expected


@pytest.mark.parametrize("due", ["soon", "2023-11-14T22:13:20", "1h", "nan", "inf", "1e999", "23:59:60Z"])
@pytest.mark.parametrize("name", ["due", "time"])
def test_an_invalid_deadline_is_an_invalid_request_with_its_id(due: str, name: str) -> None:
    """The id is known, so the error is a result and not a dead letter."""
    body = as_request(event(b'{"id":"a","payload":{}}', **{name: due}), Delivery([], b""), ALL, NOW)
    with pytest.raises(InvalidRequest, match="deadline") as caught:
        decode_body(body, max_bytes=1_000)
    assert caught.value.request_id == "a"


def test_a_payload_alone_takes_the_events_id() -> None:
    fields = EventFields(deadline_seconds=60, is_payload=True)
    assert filled(b'{"prompt":"hi"}', fields) == {
        "id": "e-1",
        "deadline": NOW + 60,
        "payload": {"prompt": "hi"},
    }


@given(data=JSON.map(text) | broken() | st.binary(max_size=30), is_payload=st.booleans())
def test_any_data_is_converted_without_an_error(data: bytes, is_payload: bool) -> None:
    fields = EventFields("id", "team", "due", 60.0, is_payload)
    whole = as_request(event(data, team="red"), Delivery([], data), fields, NOW)
    if is_payload:
        try:
            found = decode_body(whole).id
        except InvalidRequest as error:
            found = error.request_id
        assert found == "e-1", "a payload that cannot be read still has an owner"
