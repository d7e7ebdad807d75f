"""Events written by the CloudEvents SDK can be read, and the reverse; data stays bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cloudevents.conversion import to_binary, to_structured
from cloudevents.http import CloudEvent, from_http
from hypothesis import given
from hypothesis import strategies as st

from handlers.contract.errors import InvalidEvent
from handlers.contract.events import Event, binary_headers, decode_event, to_header
from handlers.doors.cloudevents.foreign_event import read_event, write_event

WORD = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters='"%\\'), min_size=1, max_size=20
)
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)
NAMES = st.from_regex(r"x[a-z0-9]{0,10}", fullmatch=True)
EXTENSIONS = st.dictionaries(NAMES, WORD, max_size=4)
DATA = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**50), 2**50) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def wire(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


def event_of(event_id: str, extensions: dict[str, str], data: Any) -> CloudEvent:
    attributes: dict[str, Any] = {"id": event_id, "source": "/s", "type": "t", "time": None, **extensions}
    return CloudEvent(attributes, data)


@given(event_id=WORD, extensions=EXTENSIONS, data=st.binary(min_size=1))
def test_a_binary_event_of_the_sdk_is_read_byte_for_byte(
    event_id: str, extensions: dict[str, str], data: bytes
) -> None:
    headers, body = to_binary(event_of(event_id, extensions, data), data_marshaller=bytes)
    found = read_event(wire(headers), body)
    assert (found.id, found.source, found.type, found.data) == (event_id, "/s", "t", data)
    assert found.extensions == extensions
    assert found == decode_event(wire(headers), body), "the codec of the internal hop agrees"


@given(event_id=TEXT, extensions=EXTENSIONS, data=DATA.filter(lambda value: not isinstance(value, str)))
def test_a_structured_event_of_the_sdk_is_read_with_its_data_as_json(
    event_id: str, extensions: dict[str, str], data: Any
) -> None:
    headers, body = to_structured(event_of(event_id, extensions, data))
    found = read_event(wire(headers), body)
    assert (found.id, found.is_structured) == (event_id, True)
    assert json.loads(found.data or b"null") == data
    assert found == decode_event(wire(headers), body), "the codec of the internal hop agrees"


@given(event_id=WORD, extensions=EXTENSIONS, data=st.binary(min_size=1))
def test_the_sdk_reads_events_written_by_either_encoder(event_id: str, extensions: dict[str, str], data: bytes) -> None:
    by_sdk, body = write_event(event_id, "/s", "t", extensions, data)
    assert body == data
    assert by_sdk == binary_headers(event_id, "/s", "t", extensions)
    found = from_http(by_sdk, body, data_unmarshaller=bytes)
    assert (found["id"], found.get_data()) == (event_id, data)
    assert {name: found[name] for name in extensions} == extensions


@given(value=TEXT)
def test_a_written_attribute_of_any_text_is_read_back(value: str) -> None:
    headers, body = write_event(value, "/s", "t", {"x": value}, b"{}")
    assert headers["ce-x"] == to_header(value)
    found = read_event(wire(headers), body)
    assert (found.id, found.extensions["x"]) == (value, value)


def test_the_data_of_a_structured_event_stays_byte_for_byte() -> None:
    body = b'{"specversion":"1.0","id":"e","source":"/s","type":"t","data": { "a": 1.0 , "b":[ ]}}'
    found = read_event([(b"content-type", b"application/cloudevents+json")], body)
    assert found == Event("e", "/s", "t", b'{ "a": 1.0 , "b":[ ]}', {}, is_structured=True)


@pytest.mark.parametrize("name", ["specversion", "id", "source", "type"])
def test_a_missing_attribute_is_named(name: str) -> None:
    headers = {"ce-specversion": "1.0", "ce-id": "e", "ce-source": "/s", "ce-type": "t"}
    del headers[f"ce-{name}"]
    with pytest.raises(InvalidEvent) as caught:
        read_event(wire(headers), b"{}")
    assert caught.value.field == name


@given(
    headers=st.dictionaries(
        st.sampled_from(
            [
                b"ce-id",
                b"ce-source",
                b"ce-type",
                b"ce-specversion",
                b"ce-data",
                b"ce-extensions",
                b"content-type",
            ]
        ),
        st.sampled_from([b"1.0", b"", b"application/cloudevents+json", b"text/plain"]) | st.binary(max_size=8),
    ),
    body=st.binary(max_size=30) | DATA.map(lambda value: json.dumps(value).encode()),
)
def test_any_message_is_read_or_raises_invalid_event(headers: dict[bytes, bytes], body: bytes) -> None:
    try:
        found = read_event(list(headers.items()), body)
    except InvalidEvent:
        return
    assert found.id
    assert found.source
    assert found.type
