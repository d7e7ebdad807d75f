"""A request's body: every accepted form, and a clear error for everything else."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.contract.errors import InvalidRequest
from handlers.contract.lenient_json import BLOCKING_BYTES, MAX_DEPTH, MAX_PAIRS
from handlers.contract.request import (
    LATEST_DEADLINE,
    LONGEST_TTL_SECONDS,
    MAX_ID_LENGTH,
    MAX_METADATA_ENTRIES,
    Request,
    decode_body,
    decode_body_aside,
)
from tests.contract.json_texts import BODIES, JSON, STRANGE, broken, text


def body(**fields: Any) -> bytes:
    return text({"id": "r-1", "deadline": 1999999999, "payload": {"model": "m"}, **fields})


def refused(wire: bytes, **given: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        decode_body(wire, **given)
    return caught.value


@pytest.mark.parametrize(
    ("wire", "seconds"),
    [
        (b"1999999999", 1999999999.0),
        (b"1999999999.25", 1999999999.25),
        (b'"1999999999"', 1999999999.0),
        (b'"1999999999.25"', 1999999999.25),
        (b"1.999999999e9", 1999999999.0),
        (b"0.5", 0.5),
        (str(LATEST_DEADLINE).encode(), float(LATEST_DEADLINE)),
    ],
)
def test_a_deadline_is_a_number_or_a_decimal_string(wire: bytes, seconds: float) -> None:
    assert decode_body(b'{"id":"a","payload":null,"deadline":' + wire + b"}").deadline == seconds


@pytest.mark.parametrize(
    "wire",
    [
        *(b"0", b"-1", b'"0"', b'"-5"', b"null", b"true", b"[]", b"{}", b'""', b'"soon"', b'" 5"', b'"1e9"'),
        *(b'"0x10"', b'"5."', b"1999999999000", b"1e300", b"1" + b"0" * 400, b"1" + b"0" * 5000, b"-1e300"),
        *('"٣"'.encode(), b'"' + b"9" * 33 + b'"', b'"NaN"', b'"Infinity"', b"-0", b"1e400"),
    ],
)
def test_an_invalid_deadline_is_refused_and_named(wire: bytes) -> None:
    error = refused(b'{"id":"a","payload":{},"deadline":' + wire + b"}")
    assert (error.field, error.request_id) == ("deadline", "a")
    assert "Unix seconds" in error.accepted


@pytest.mark.parametrize("wire", [b"NaN", b"Infinity", b"01", b"+5", b"nope"])
def test_a_value_outside_json_is_an_invalid_deadline(wire: bytes) -> None:
    error = refused(b'{"id":"a","payload":{},"deadline":' + wire + b"}")
    assert (error.field, error.request_id) == ("body", "a")


@pytest.mark.parametrize(
    ("payload", "found"),
    [
        (b"[]", "an array"),
        (b'"x"', "a string"),
        (b"5", "a number"),
        (b"true", "a boolean"),
        (b"false", "a boolean"),
    ],
)
def test_a_payload_is_an_object_or_null(payload: bytes, found: str) -> None:
    error = refused(b'{"id":"a","deadline":5,"payload":' + payload + b"}")
    assert error.field == "payload"
    assert error.found == found
    assert decode_body(b'{"id":"a","deadline":5,"payload":null}').payload == b"null"


def test_a_payload_may_be_absent_only_if_offloaded() -> None:
    wire = b'{"id":"a","deadline":5}'
    assert refused(wire).field == "payload"
    assert decode_body(wire, payload_ref="request-payload:a:t").payload == b""


@pytest.mark.parametrize(
    ("wire", "field", "request_id"),
    [
        (b'{"deadline":5,"payload":{}}', "id", ""),
        (b'{"id":null,"deadline":5,"payload":{}}', "id", ""),
        (b'{"id":"","deadline":5,"payload":{}}', "id", ""),
        (b'{"id":7,"deadline":5,"payload":{}}', "id", ""),
        (b'{"id":"a\\u0000b","deadline":5,"payload":{}}', "id", "a\0b"),
        (b'{"id":"a","deadline":5,"payload":{},"metadata":{"k":1}}', "metadata.*", "a"),
        (b'{"id":"a","deadline":5,"payload":{},"headers":["x"]}', "headers", "a"),
        (b'{"id":"a","deadline":5,"payload":{},"model":4}', "model", "a"),
        (b'{"id":"a","deadline":5,"payload":{},"endpoint":{}}', "endpoint", "a"),
        (b'{"id":"a","deadline":5,"payload":{}} tail', "body", "a"),
        (b'\xef\xbb\xbf{"id":"a","deadline":5,"payload":{}}', "body", "a"),
        (b'{"id":"a","deadline":5,"payload":{', "body", "a"),
        *((wire, "body", "") for wire in (b"", b"null", b"[]", b"5", b'"id"', b"not json", b"\xff\xfe")),
    ],
)
def test_errors_name_the_field_and_a_readable_id(wire: bytes, field: str, request_id: str) -> None:
    error = refused(wire)
    assert (error.field, error.request_id) == (field, request_id)
    assert error.found
    assert error.accepted


def test_an_error_never_repeats_what_the_client_sent() -> None:
    """Errors are shown in logs and results, so they must not contain the payload."""
    for wire in (body(payload="CANARY"), body(deadline="CANARY"), body(metadata={"CANARY": 1}), b'"CANARY'):
        assert "CANARY" not in str(refused(wire))


def test_a_body_is_as_large_as_the_limit_and_no_larger() -> None:
    wire = body()
    assert decode_body(wire, max_bytes=len(wire)).id == "r-1"
    error = refused(wire, max_bytes=len(wire) - 1)
    assert (error.field, error.request_id) == ("body", "r-1")


def test_a_body_of_ten_megabytes_is_accepted_and_a_larger_one_is_refused() -> None:
    head, tail = b'{"id":"a","deadline":5,"payload":{"p":"', b'"}}'
    for size, is_accepted in ((10_000_000, True), (10_000_001, False)):
        wire = head + b"x" * (size - len(head) - len(tail)) + tail
        if is_accepted:
            assert len(decode_body(wire).payload) == size - len(b'{"id":"a","deadline":5,"payload":}')
        else:
            assert refused(wire).request_id == "a"


@pytest.mark.parametrize("levels", [1, 70, 1_100, MAX_DEPTH - 1, MAX_DEPTH, 100_000])
def test_nesting_is_accepted_to_its_limit(levels: int) -> None:
    wire = b'{"id":"a","deadline":5,"payload":' + b'{"a":' * levels + b"1" + b"}" * levels + b"}"
    if levels < MAX_DEPTH:  # the body itself is the first level
        assert decode_body(wire).payload.count(b"{") == levels
    else:
        error = refused(wire)
        assert ("nesting" in error.found, error.request_id) == (True, "a")


def test_metadata_has_as_many_entries_as_the_limit_and_no_more() -> None:
    many = {f"k{number}": "" for number in range(MAX_METADATA_ENTRIES)}
    added = {"traceparent": "t"}
    assert len(decode_body(body(metadata=many), extra_metadata=added).metadata) == MAX_METADATA_ENTRIES + 1
    error = refused(body(metadata={**many, "one": "more"}))
    assert (error.request_id, error.field) == ("r-1", "metadata")
    assert "expected at most 1,000, got 1,001 entries" in str(error)


@pytest.mark.parametrize("field", ["metadata", "headers"])
def test_a_map_with_far_too_many_entries_is_refused_before_it_is_decoded(field: str) -> None:
    many = {f"k:{number}": "" for number in range(MAX_PAIRS)}
    assert "20,000 entries" in str(refused(body(metadata=many)))
    assert len(decode_body(body(headers=many)).headers) == MAX_PAIRS
    error = refused(body(**{field: {**many, "one": "more"}}))
    assert (error.request_id, error.field) == ("r-1", field)
    assert "more entries (over 20,000)" in str(error)


def test_an_id_is_as_long_as_the_limit_and_no_longer() -> None:
    assert decode_body(body(id="x" * MAX_ID_LENGTH)).id == "x" * MAX_ID_LENGTH
    error = refused(body(id="x" * (MAX_ID_LENGTH + 1)))
    assert (error.field, len(error.request_id)) == ("id", MAX_ID_LENGTH + 1)


def test_an_id_too_long_for_a_result_counts_as_unreadable() -> None:
    """Else the result that refuses it could be too large to publish."""
    assert refused(body(id="x" * 1_000_000)).request_id == ""


@pytest.mark.parametrize("seconds", [-1, LONGEST_TTL_SECONDS + 1, 10**40])
def test_an_expiry_that_redis_would_not_take_is_refused(seconds: int) -> None:
    error = refused(body(), result_ttl_seconds=seconds)
    assert (error.field, error.request_id) == ("result_ttl_seconds", "r-1")


def test_values_of_the_transport_win_over_the_body() -> None:
    wire = body(metadata={"a": "body", "b": "body"}, result_queue_name="mine")
    request = decode_body(wire, extra_metadata={"a": "attribute"}, result_queue_name="theirs", attempt=3)
    assert request.metadata == {"a": "attribute", "b": "body"}
    assert (request.result_queue_name, request.attempt) == ("theirs", 3)
    assert decode_body(wire).result_queue_name == "mine"


def test_the_last_of_repeated_fields_counts() -> None:
    wire = b'{"id":"a","id":"b","deadline":1,"deadline":7,"payload":{},"payload":{"x":1}}'
    request = decode_body(wire)
    assert (request.id, request.deadline, request.payload) == ("b", 7.0, b'{"x":1}')


@pytest.mark.parametrize("created", [b"-5", b'"x"', b"1e300", b"1" + b"0" * 400, b"null"])
def test_an_invalid_creation_time_is_ignored(created: bytes) -> None:
    assert decode_body(b'{"id":"a","deadline":5,"payload":{},"created":' + created + b"}").created is None


@given(fields=BODIES, spaces=st.sampled_from(["", " ", "\n\t"]))
def test_a_valid_body_is_decoded_and_its_payload_untouched(fields: dict[str, Any], spaces: str) -> None:
    payload = text(fields["payload"]).replace(b'": ', f'":{spaces}'.encode())
    rest = text({name: value for name, value in fields.items() if name != "payload"})
    request = decode_body(rest[:-1] + b',"payload":' + payload + b"}")
    assert request.payload == payload
    assert (request.id, request.deadline) == (fields["id"], float(fields["deadline"]))
    for name in ("metadata", "headers"):
        assert getattr(request, name) == (fields.get(name) or {})
    for name in ("endpoint", "model", "result_queue_name"):
        assert getattr(request, name) == (fields.get(name) or "")


@given(wire=STRANGE.map(text) | JSON.map(text) | broken() | st.binary(max_size=60))
def test_no_input_crashes(wire: bytes) -> None:
    try:
        assert isinstance(decode_body(wire), Request)
    except InvalidRequest as error:
        assert error.field
        assert error.found


@pytest.mark.parametrize(("size", "is_aside"), [(BLOCKING_BYTES, False), (BLOCKING_BYTES + 1, True)])
async def test_only_a_large_body_is_decoded_in_a_thread(
    size: int, is_aside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the event loop it would delay all other requests."""
    threads: list[threading.Thread] = []

    def decode(body: bytes, **known: Any) -> Request:
        threads.append(threading.current_thread())
        return decode_body(body, **known)

    monkeypatch.setattr("handlers.contract.request.decode_body", decode)
    head = b'{"id":"a","deadline":5,"payload":{"a":"'
    await decode_body_aside(head + b"x" * (size - len(head) - 3) + b'"}}')
    assert [thread is not threading.main_thread() for thread in threads] == [is_aside]
