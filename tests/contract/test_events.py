"""CloudEvents over HTTP: binary and structured in, binary out, the wrong ones named."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from handlers.contract.errors import InvalidEvent
from handlers.contract.events import binary_headers, decode_event, is_event, to_header
from tests.contract.json_texts import JSON, TEXT, broken, text

STRUCTURED = [(b"content-type", b"application/cloudevents+json; charset=utf-8")]
BINARY = [(b"ce-specversion", b"1.0"), (b"ce-id", b"e"), (b"ce-source", b"/s"), (b"ce-type", b"t")]
ATTRIBUTES = {"specversion": "1.0", "id": "e", "source": "/s", "type": "t"}


def structured(**fields: Any) -> bytes:
    return text({**ATTRIBUTES, **fields})


def refused(headers: list[tuple[bytes, bytes]], body: bytes) -> InvalidEvent:
    with pytest.raises(InvalidEvent) as caught:
        decode_event(headers, body)
    return caught.value


def test_binary_mode_keeps_the_data_unchanged() -> None:
    headers = [(f"ce-{name}".encode(), value.encode()) for name, value in ATTRIBUTES.items()]
    event = decode_event([*headers, (b"ce-attempt", b"3"), (b"host", b"x")], b'{"a": 1.0 }')
    assert (event.id, event.source, event.type) == ("e", "/s", "t")
    assert (event.data, event.extensions) == (b'{"a": 1.0 }', {"attempt": "3"})


def test_structured_mode_keeps_the_bytes_of_an_object_unchanged() -> None:
    body = structured()[:-1] + b', "data": { "a": 1.0 , "b":[ ]}}'
    assert decode_event(STRUCTURED, body).data == b'{ "a": 1.0 , "b":[ ]}'


@pytest.mark.parametrize(
    ("fields", "data"),
    [
        ({}, b""),
        ({"data": None}, b"null"),
        ({"data": '{"id":"a"}'}, b'{"id":"a"}'),
        ({"data": "é"}, "é".encode()),
        ({"data_base64": base64.b64encode(b"\xff\x00").decode()}, b"\xff\x00"),
    ],
)
def test_structured_data_may_have_several_forms(fields: dict[str, Any], data: bytes) -> None:
    assert decode_event(STRUCTURED, structured(**fields)).data == data


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        *(({name: ""}, name) for name in ("id", "source", "type")),
        *(({name: None}, name) for name in ("id", "source", "type")),
        ({"specversion": "0.3"}, "specversion"),
        ({"subject": {"x": 1}}, "subject"),
        ({"data_base64": "é"}, "data_base64"),
        ({"data_base64": "a"}, "data_base64"),
        ({"data_base64": "YQ==\n"}, "data_base64"),
        ({"data_base64": 5}, "data_base64"),
        ({"data_base64": None}, "data_base64"),
    ],
)
def test_a_wrong_attribute_is_named(fields: dict[str, Any], field: str) -> None:
    assert refused(STRUCTURED, structured(**fields)).field == field


@pytest.mark.parametrize(("value", "found"), [({"x": 1}, "an object"), ([1], "an array")])
def test_an_attribute_that_is_not_a_scalar_is_refused_with_its_kind(value: object, found: str) -> None:
    assert refused(STRUCTURED, structured(subject=value)).found == found


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"5", b"{", b'{"id":"\xff"}', b"[" * 5_000])
def test_a_structured_event_is_a_json_object(body: bytes) -> None:
    assert refused(STRUCTURED, body).field == "event"


@pytest.mark.parametrize(
    "kind",
    [b"application/cloudevents-batch+json", b"application/cloudevents+xml", b"application/cloudevents"],
)
def test_batches_and_unknown_formats_are_refused(kind: bytes) -> None:
    assert refused([(b"content-type", kind)], b"[]").field == "content-type"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([(b"ce-specversion", b"1.0")], True),
        (STRUCTURED, True),
        ([(b"content-type", b"Application/CloudEvents+json")], True),
        ([(b"content-type", b"application/json")], False),
        ([], False),
    ],
)
def test_an_event_is_recognised_by_its_headers(headers: list[tuple[bytes, bytes]], expected: bool) -> None:
    assert is_event(headers) is expected


@given(event_id=TEXT.filter(bool), source=TEXT.filter(bool), extensions=st.dictionaries(st.just("x"), TEXT))
def test_events_in_binary_mode_survive_a_round_trip(event_id: str, source: str, extensions: dict[str, str]) -> None:
    headers = binary_headers(event_id, source, "t", extensions)
    wire = [(name.encode(), value.encode("ascii")) for name, value in headers.items()]
    event = decode_event(wire, b"{}")
    assert (event.id, event.source) == (event_id, source)
    assert event.extensions == extensions


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro \u20ac \U0001f600"),
        (b"%e2%82%ac", "\u20ac"),
        (b"%41", "A"),
        (b"100%", "100%"),
        (b'"two words"', "two words"),
        (rb'"a \"quoted\" \\ one%20more"', 'a "quoted" \\ one more'),
        ("\u20ac".encode(), "\u20ac"),
        (b"caf\xe9", "caf\u00e9"),
        (b'"', '"'),
    ],
)
def test_header_values_are_unquoted_and_percent_decoded_once(value: bytes, expected: str) -> None:
    assert decode_event([*BINARY, (b"ce-subject", value)], b"").extensions["subject"] == expected


@pytest.mark.parametrize("value", [b"%C0%A0", b"%FF", b"a%E2%82"])
def test_invalid_percent_encoding_is_refused_by_attribute_name(value: bytes) -> None:
    assert refused([*BINARY, (b"ce-subject", value)], b"").field == "subject"


@given(value=st.text(st.characters(exclude_categories=["Cs"])))
def test_a_header_value_is_printable_ascii_without_a_quote(value: str) -> None:
    encoded = to_header(value)
    assert encoded.isascii()
    assert encoded.isprintable()
    assert not set(encoded) & set(' "')


@given(
    headers=st.lists(
        st.tuples(
            st.sampled_from([b"ce-id", b"ce-source", b"ce-type", b"ce-specversion", b"ce-x", b"content-type"]),
            st.binary(max_size=12) | st.sampled_from([b"1.0", b"application/cloudevents+json"]),
        ),
        max_size=7,
    ),
    body=st.binary(max_size=30) | broken() | JSON.map(text),
)
@example(headers=STRUCTURED, body=b'{"":[]}')
@example(headers=STRUCTURED, body=b'{"%s":[]}' % (b"x" * 60_000))
@example(headers=[(b"ce-", b"%ff")], body=b"")
@example(headers=[(b"ce-" + b"x" * 60_000, b"%ff")], body=b"")
def test_no_delivery_crashes(headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    try:
        assert decode_event(headers, body).id
    except InvalidEvent as error:
        assert error.field
        assert len(str(error)) < 500


@given(fields=st.dictionaries(st.sampled_from([*ATTRIBUTES, "data", "data_base64", "subject"]), JSON, max_size=7))
def test_no_structured_event_crashes(fields: dict[str, Any]) -> None:
    try:
        decode_event(STRUCTURED, json.dumps({**ATTRIBUTES, **fields}).encode())
    except InvalidEvent as error:
        assert error.found
