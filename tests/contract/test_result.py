"""Results: fields that are empty are omitted, and no body of the gateway can break the JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.contract.events import RetryAnswer, decode_retry_answer, encode_retry_answer
from handlers.contract.lenient_json import Malformed
from handlers.contract.result import (
    ErrorCode,
    Result,
    answered_result,
    decode_result,
    encode_result,
    encoded_payload_bytes,
    error_result,
    is_mostly_controls,
)
from tests.contract.json_texts import TEXT


def test_an_answer_has_no_error_fields() -> None:
    result = answered_result("a", "", 503, b'{"x":1}')
    assert json.loads(encode_result(result)) == {"id": "a", "status_code": 503, "payload": '{"x":1}'}


def test_an_error_has_no_status_and_repeats_its_message_in_the_payload() -> None:
    wire = json.loads(encode_result(error_result("a", "t", ErrorCode.DEADLINE_EXCEEDED, 'too "late"')))
    assert wire == {
        "id": "a",
        "payload": '{"error":"too \\"late\\""}',
        "error_code": "DEADLINE_EXCEEDED",
        "error_message": 'too "late"',
        "request_token": "t",
    }


@given(body=st.binary(max_size=60), request_id=TEXT, status=st.integers(100, 599))
def test_any_response_body_becomes_one_line_of_valid_json(body: bytes, request_id: str, status: int) -> None:
    wire = encode_result(answered_result(request_id, "", status, body))
    assert b"\n" not in wire
    result = decode_result(wire)
    assert (result.id, result.status_code) == (request_id, status)
    assert result.payload == body.decode("utf-8", "replace")
    assert json.loads(wire).get("payload", "") == result.payload


@given(request_id=TEXT, token=TEXT, message=TEXT, code=st.sampled_from(ErrorCode))
def test_a_result_is_unchanged_after_encoding_and_decoding(
    request_id: str, token: str, message: str, code: ErrorCode
) -> None:
    result = error_result(request_id, token, code, message)
    assert decode_result(encode_result(result)) == result


def test_a_reader_ignores_unknown_fields() -> None:
    assert decode_result(b'{"id":"a","status_code":200,"payload":"x","shard":7}').status_code == 200


@pytest.mark.parametrize("wire", [b"", b"[]", b"{}", b'{"id":5}', b'{"id":"a","status_code":"x"}'])
def test_an_invalid_result_raises(wire: bytes) -> None:
    with pytest.raises(Malformed):
        decode_result(wire)


@given(
    answer=st.builds(
        RetryAnswer,
        reason=TEXT,
        retry_after_seconds=st.floats(0, 1e6),
        counts_attempt=st.booleans(),
        status_code=st.integers(0, 599),
        payload=TEXT,
    )
)
def test_a_retry_answer_is_unchanged_after_encoding_and_decoding(answer: RetryAnswer) -> None:
    assert decode_retry_answer(encode_retry_answer(answer)) == answer


@given(body=st.binary(max_size=40))
def test_a_503_without_our_header_is_not_our_answer(body: bytes) -> None:
    assert decode_retry_answer(body) is None


@given(st.text(), st.binary())
def test_no_encoded_payload_is_larger_than_foreseen(text: str, answer: bytes) -> None:
    frame = len(encode_result(Result("r", 200)))
    written = Result("r", 200, text)
    assert len(encode_result(written)) - frame - len(',"payload":""') <= encoded_payload_bytes(written)
    given_back = answered_result("r", "", 200, answer, keeps_bytes=True)
    names = len(',"payload":"","payload_base64":""')
    assert len(encode_result(given_back)) - frame - names <= encoded_payload_bytes(given_back)


@given(st.binary(min_size=3))
def test_text_that_base64_makes_smaller_is_mostly_controls(text: bytes) -> None:
    """Quotes and line ends do not count: they at most double a text, which stays readable."""
    controls = sum(byte < 32 and chr(byte) not in "\b\t\n\f\r" for byte in text)
    assert is_mostly_controls(text) == (len(text) + 5 * controls > len(text) + len(text) // 3)
