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
from handlers.doors.cloudevents.foreign_event import EventFields, as_request, with_tenant
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


def tenant_of(data: bytes, **extensions: str) -> str | None:
    """The tenant of the request that an event becomes."""
    sent, delivery = event(data, **extensions), Delivery([], data)
    request = decode_body(as_request(sent, delivery, ALL, NOW))
    return with_tenant(request, sent, delivery, ALL).metadata.get("userid")


@pytest.mark.parametrize(
    "data",
    [
        WHOLE,
        b'{"id":"a","payload":{},"metadata":{},"METADATA":{"userid":"me"}}',
        b'{"id":"a","payload":{},"metadata":null,"Metadata":{"userid":"me"}}',
        b'{"id":"a","payload":{},"metadata":{"userid":"me","\xff":"no UTF-8"}}',
        b'{"id":"a","payload":{},"metadata":{"userid":"me","\\ud800":"half a pair"}}',
        b'{"id":"a","payload":{},"\xff":1,"metadata":{"userid":"me"}}',
        b'{"id":"a","payload":{"deep":' + b"[" * 5_000 + b"]" * 5_000 + b'},"metadata":{"userid":"me"}}',
    ],
)
def test_the_tenant_is_the_operators_however_the_data_spells_its_own(data: bytes) -> None:
    assert tenant_of(data, team="red") == "red"
    assert tenant_of(data) is None


def test_the_tenant_of_the_data_counts_if_the_operator_names_no_source() -> None:
    fields = EventFields("id", "", "", 60.0)
    request = decode_body(as_request(event(WHOLE), Delivery([], WHOLE), fields, NOW))
    assert with_tenant(request, event(WHOLE), Delivery([], WHOLE), fields).metadata == {"userid": "me"}


@pytest.mark.parametrize("data", [b'{"ID":"own","DEADLINE":5,"payload":{}}', b'{"id":"own","deadline":5,"payload":{}}'])
def test_fields_of_the_data_win_in_any_case(data: bytes) -> None:
    request = decode_body(as_request(event(data, due="99"), Delivery([], data), ALL, NOW))
    assert (request.id, request.deadline) == ("own", 5)


def test_a_payload_stays_byte_for_byte() -> None:
    data = b'{"id":"a","payload":{ "x" : 1.0,"y":[ ] }}'
    whole = as_request(event(data), Delivery([], data), ALL, NOW)
    assert b'{ "x" : 1.0,"y":[ ] }' in whole


@pytest.mark.parametrize("metadata", [{}, {"metadata": None}, {"metadata": {"other": "1"}}])
def test_the_tenant_joins_the_metadata(metadata: dict[str, Any]) -> None:
    assert tenant_of(json.dumps({"payload": {}, **metadata}).encode(), team="red") == "red"


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
