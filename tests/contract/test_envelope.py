"""Members of a sorted set: bare bodies and envelopes in, retry members out, nothing unknown lost."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.contract.errors import InvalidRequest
from handlers.contract.request import (
    SEQ_STEPS,
    WHOLLY_READ_BYTES,
    Envelope,
    decode_member,
    encode_retry,
    score_of,
    with_payload,
)
from tests.contract.json_texts import BODIES, INTERNALS, STRANGE, broken, text

BODY = b'{"id": "a", "payload": { "p" : 1.50 }, "deadline": "100", "unknown": [1]}'


def enveloped(body: bytes, internal: bytes = b"{}", kind: bytes = b'"redis"', more: bytes = b"") -> bytes:
    return b'{"internal":' + internal + b',"request_kind":' + kind + b',"data":' + body + more + b"}"


def refused(member: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        decode_member(member, "q")
    return caught.value


def test_a_bare_body_routes_itself() -> None:
    request = decode_member(b'{"id":"a","payload":{},"deadline":5,"result_queue_name":"mine"}', "q").request
    assert (request.result_queue_name, request.queue, request.attempt) == ("mine", "q", 0)


def test_in_an_envelope_only_internal_routes() -> None:
    body = b'{"id":"a","payload":{},"deadline":5,"result_queue_name":"copy","request_token":"copy"}'
    request = decode_member(enveloped(body), "q").request
    assert (request.result_queue_name, request.request_token) == ("", "")
    internal = b'{"result_queue_name":"mine","request_token":"t","retry_count":3,"labels":{"tier":"batch"}}'
    request = decode_member(enveloped(body, internal), "q").request
    assert (request.result_queue_name, request.request_token, request.attempt) == ("mine", "t", 3)
    assert request.labels == {"tier": "batch"}


@pytest.mark.parametrize(
    "internal",
    [
        *(b"null", b"{}", b'{"retry_count":null}', b'{"labels":null,"request_token":null}'),
        b'{"result_queue_name":null,"result_ttl_seconds":null,"enqueue_seq":null,"payload_ref":null}',
    ],
)
def test_nulls_in_internal_are_absent_fields(internal: bytes) -> None:
    assert decode_member(enveloped(BODY, internal), "q").request.id == "a"


def test_a_body_with_a_field_called_data_is_still_bare() -> None:
    for member in (
        b'{"id":"a","deadline":5,"payload":{},"data":{"x":1}}',
        b'{"internal":null,"id":"a","deadline":5,"payload":{},"data":{"x":1}}',
    ):
        again = encode_retry(member, queue="q", attempt=1, score=5.0)
        assert decode_member(member, "q").request.id == decode_member(again, "q").request.id == "a"


@pytest.mark.parametrize(
    "member",
    [
        enveloped(BODY, b'{"retry_count":"x"}'),
        enveloped(BODY, b"[]"),
        enveloped(BODY, b"{}", b"5"),
        enveloped(b'{"id":"a"'),
    ],
)
def test_a_broken_frame_is_named_and_its_id_read(member: bytes) -> None:
    error = refused(member)
    assert (error.field, error.request_id) == ("envelope", "a")


def test_an_invalid_body_in_an_envelope_keeps_its_result_list() -> None:
    internal = b'{"request_token":"t","result_queue_name":"mine","payload_ref":"apart"}'
    for member in (
        enveloped(b'{"id":"a","deadline":0,"payload":{}}', internal),
        enveloped(b'{"id":"a","deadline":5,"payload":' + b'{"a":' * 20_000 + b"1" + b"}" * 20_001, internal),
    ):
        error = refused(member)
        assert (error.request_id, error.request_token, error.result_queue_name) == ("a", "t", "mine")
        assert error.payload_ref == "apart"


@pytest.mark.parametrize("count", [b"-4", b"1" + b"0" * 30])
def test_an_invalid_retry_count_does_no_harm(count: bytes) -> None:
    envelope = decode_member(enveloped(BODY, b'{"retry_count":' + count + b"}"), "q")
    attempt = envelope.request.attempt
    member = enveloped(BODY, b'{"retry_count":' + count + b"}")
    again = decode_member(encode_retry(member, queue="q", attempt=attempt + 1, score=100.0), "q")
    assert again.request.attempt == min(attempt + 1, 1_000_000)
    assert 0 <= attempt <= 1_000_000


def test_a_result_list_that_redis_would_refuse_is_an_invalid_request() -> None:
    error = refused(enveloped(BODY, b'{"result_ttl_seconds":-1}'))
    assert (error.field, error.request_id) == ("result_ttl_seconds", "a")


@given(fields=BODIES, internal=INTERNALS, is_bare=st.booleans(), attempt=st.integers(0, 99))
def test_a_retry_keeps_all_but_its_count_and_its_queue(
    fields: dict[str, Any], internal: dict[str, Any], is_bare: bool, attempt: int
) -> None:
    body = text(fields)
    member = body if is_bare else enveloped(body, text(internal), more=b',"x_frame":[1]')
    first = decode_member(member, "q")
    score = score_of(first.request.deadline, first.internal.enqueue_seq)
    retry = encode_retry(member, queue="q", attempt=attempt, score=score)

    again = decode_member(retry, "q")
    assert again.data == body, "the body is the same, byte for byte"
    expected = msgspec.structs.replace(first.request, attempt=attempt)
    assert again.request == expected
    written = json.loads(retry)
    assert written["internal"].pop("request_queue_name") == "q"
    assert written["internal"].pop("retry_count") == attempt
    if len(member) > WHOLLY_READ_BYTES:  # scripts read the beginning only, so the score is written out
        assert written["internal"].pop("original_score") == score
    if not is_bare:
        kept = {name: value for name, value in internal.items() if value is not None}
        kept.pop("retry_count", None)
        assert written["internal"] == kept
        assert written["x_frame"] == [1]


@given(fields=BODIES, attempt=st.integers(0, 9))
def test_a_second_retry_does_not_wrap_again(fields: dict[str, Any], attempt: int) -> None:
    member = text(fields)
    once = encode_retry(member, queue="q", attempt=1, score=0.25)
    twice = encode_retry(once, queue="q", attempt=attempt, score=0.25)
    assert decode_member(twice, "q").data == member
    assert json.loads(twice)["internal"]["original_score"] == 0.25


def test_a_score_that_follows_from_the_deadline_is_not_written() -> None:
    member = enveloped(BODY, b'{"enqueue_seq":3}')
    assert b"original_score" not in encode_retry(member, queue="q", attempt=1, score=score_of(100.0, 3))
    assert b'"original_score":7.0' in encode_retry(member, queue="q", attempt=1, score=7.0)


def test_a_body_above_the_default_limit_can_be_retried_under_a_larger_limit() -> None:
    member = b'{"id":"a","deadline":5,"payload":{"p":"' + b"x" * 10_000_000 + b'"}}'
    assert decode_member(member, "q", max_bytes=20_000_000).request.id == "a"
    assert len(encode_retry(member, queue="q", attempt=1, score=5.0)) > len(member)


@given(member=STRANGE.map(text) | broken() | st.binary(max_size=60))
def test_no_member_crashes_and_decoded_ones_can_be_retried(member: bytes) -> None:
    try:
        envelope = decode_member(member, "q")
    except InvalidRequest as error:
        assert error.found
        return
    assert isinstance(envelope, Envelope)
    retry = encode_retry(member, queue="q", attempt=envelope.request.attempt + 1, score=2.5)
    assert decode_member(retry, "q").request.id == envelope.request.id


@given(internal=INTERNALS, junk=st.binary(min_size=1, max_size=4), at=st.integers(0, 400))
def test_binary_members_never_reach_the_retry_set(internal: dict[str, Any], junk: bytes, at: int) -> None:
    whole = enveloped(BODY, text(internal), more=b',"x":"y"')
    member = whole[: at % len(whole)] + junk + whole[at % len(whole) :]
    try:
        decode_member(member, "q")
    except InvalidRequest:
        return
    encode_retry(member, queue="q", attempt=1, score=2.5).decode()


@given(sequence=st.lists(st.integers(0, SEQ_STEPS - 1), min_size=2, max_size=9, unique=True))
def test_equal_deadlines_keep_their_order_of_submission(sequence: list[int]) -> None:
    scores = {seq: score_of(1_999_999_999.0, seq) for seq in sequence}
    assert sorted(sequence, key=lambda seq: scores[seq]) == sorted(sequence)
    assert len(set(scores.values())) == len(sequence), "the scores differ as floats"


@pytest.mark.parametrize(("seq", "score"), [(-1, 7.0), (0, 7.0), (SEQ_STEPS, 8 - 1 / SEQ_STEPS)])
def test_a_sequence_never_reaches_the_next_second(seq: int, score: float) -> None:
    assert score_of(7.0, seq) == score


@pytest.mark.parametrize(
    "member",
    [
        b'{"id":"a","deadline":9,"payload":{}}',
        b'{"request_kind":"redis","data":{"id":"a","deadline":9,"payload":{}}}',
        b'{"data":{"id":"a","deadline":9,"payload":{}},"request_kind":"redis","internal":{"request_token":"t"}}',
    ],
    ids=["bare", "without internal", "internal last"],
)
def test_a_retry_begins_with_internal(member: bytes) -> None:
    assert encode_retry(member, queue="q", attempt=1, score=9.0).startswith(b'{"internal":{')


OFFLOADED = b'{"request_token":"t","payload_ref":"request-payload:a:t"}'
OFFLOADED_BODY = b'{"id":"a","deadline":100}'


@pytest.mark.parametrize(
    "payload",
    [b"", b"hello", b"[1]", b'{"p":', b'{"p":1},"id":"b"', b'{"p":1}}', b"[" * 5_000],
    ids=["empty", "text", "array", "cut", "more fields", "one bracket more", "deep"],
)
def test_an_offloaded_payload_that_is_not_a_json_object_is_an_invalid_request(payload: bytes) -> None:
    with pytest.raises(InvalidRequest):
        with_payload(decode_member(enveloped(OFFLOADED_BODY, OFFLOADED), "q"), payload)


def test_an_offloaded_payload_is_sent_unchanged_within_the_request_limit() -> None:
    offloaded = decode_member(enveloped(OFFLOADED_BODY, OFFLOADED), "q")
    payload = b'{ "p" : 1.50 }'
    whole = with_payload(offloaded, payload, max_bytes=100)
    assert whole.request.payload == payload
    assert payload in whole.data
    with pytest.raises(InvalidRequest, match="at most 30 bytes"):
        with_payload(offloaded, payload, max_bytes=30)
