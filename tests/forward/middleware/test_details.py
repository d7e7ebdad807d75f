"""The details in results, and that none are written unless enabled."""

from __future__ import annotations

import base64

import msgspec
import pytest

from handlers.contract.request import Request
from handlers.contract.result import (
    ErrorCode,
    Usage,
    answered_result,
    decode_result,
    encode_result,
    error_result,
)
from handlers.forward.forward import NO_OPTIONS, AttemptOptions
from handlers.forward.middleware.account import detailed, timed
from handlers.forward.outcome import Answered, Outcome, Retry
from handlers.gates.gate import Feedback

NOW = 1_000.0
REQUEST = Request(id="a", deadline=2_000.0, payload=b"{}", created=900, attempt=2, metadata={"userid": "me", "x": "é"})
USED = b'{"usage":{"prompt_tokens":7,"completion_tokens":40}}'


def answer(body: bytes, status: int = 200) -> Answered:
    return Answered(answered_result("a", "", status, body))


async def attempted(outcome: Outcome, seconds: float) -> Outcome:
    times = iter((50.0, 50.0 + seconds))

    async def attempt(_request: Request, _options: AttemptOptions) -> Outcome:
        return outcome

    return await timed(attempt, lambda: next(times))(REQUEST, NO_OPTIONS)


async def test_an_answer_has_details() -> None:
    outcome = await attempted(answer(USED), 2.5)
    assert isinstance(outcome, Answered)
    result = detailed(outcome.result, REQUEST, NOW)
    assert (result.attempts, result.queue_seconds, result.gateway_seconds) == (3, 97.5, 2.5)
    assert (result.finished_at, result.usage, result.metadata) == (NOW, Usage(7, 40), REQUEST.metadata)
    assert decode_result(encode_result(result)) == result


async def test_an_attempt_of_zero_seconds_counts() -> None:
    outcome = await attempted(answer(b"{}"), 0.0)
    assert isinstance(outcome, Answered)
    assert detailed(outcome.result, REQUEST, NOW).attempts == 3


@pytest.mark.parametrize(
    "outcome",
    [
        Retry(1.0, "gate_closed", counts_attempt=False),
        Answered(error_result("a", "", ErrorCode.DEADLINE_EXCEEDED, "late")),
    ],
    ids=["retry", "no answer"],
)
async def test_an_outcome_without_a_gateway_call_has_no_duration(outcome: Outcome) -> None:
    assert await attempted(outcome, 2.5) == outcome


@pytest.mark.parametrize(
    "outcome",
    [
        Answered(error_result("a", "", ErrorCode.DEADLINE_EXCEEDED, "cut off"), Feedback(None)),
        Answered(error_result("a", "", ErrorCode.INFERENCE_ERROR, "too large")),
        Answered(
            msgspec.structs.replace(error_result("a", "", ErrorCode.DEADLINE_EXCEEDED, "cut off"), gateway_seconds=2.4)
        ),
    ],
    ids=["cut off", "too large", "cut off in a handler"],
)
async def test_an_attempt_without_a_response_counts(outcome: Answered) -> None:
    found = await attempted(outcome, 2.5)
    assert isinstance(found, Answered)
    result = detailed(found.result, REQUEST, NOW)
    assert (result.attempts, result.queue_seconds, result.gateway_seconds) == (3, 97.5, 2.5)


async def test_a_retry_knows_how_long_its_attempt_took() -> None:
    found = await attempted(Retry(1.0, "rejected", feedback=Feedback(429)), 2.5)
    assert isinstance(found, Retry)
    assert found.gateway_seconds == 2.5


def test_the_result_of_an_unreadable_request_has_only_the_time() -> None:
    invalid = error_result("a", "", ErrorCode.INVALID_REQUEST, "no payload")
    assert detailed(invalid, None, NOW) == msgspec.structs.replace(invalid, finished_at=NOW)


def test_a_result_without_an_attempt_counts_those_before() -> None:
    result = detailed(error_result("a", "", ErrorCode.CANCELLED, "taken back"), REQUEST, NOW)
    assert (result.attempts, result.queue_seconds, result.usage) == (2, 100.0, None)


def test_unknown_fields_are_not_written() -> None:
    request = Request(id="a", deadline=2_000.0, payload=b"{}")
    text = encode_result(detailed(answer(b"no json", 404).result, request, NOW))
    assert msgspec.json.decode(text) == {
        "id": "a",
        "status_code": 404,
        "payload": "no json",
        "finished_at": NOW,
    }


@pytest.mark.parametrize("body", [b"\xff\x00\xfe", "\ufffd and \xe9".encode(), b"{}"], ids=repr)
def test_binary_bodies_are_also_kept_as_base64(body: bytes) -> None:
    result = answered_result("a", "", 200, body, keeps_bytes=True)
    kept = base64.b64decode(result.payload_base64) if result.payload_base64 else result.payload.encode()
    assert kept == body
    assert bool(result.payload_base64) is (body == b"\xff\x00\xfe")


def test_without_details_a_result_is_that_of_the_reference() -> None:
    written = {"id": "a", "status_code": 200, "payload": "\ufffd", "request_token": "t"}
    assert msgspec.json.decode(encode_result(answered_result("a", "t", 200, b"\xff"))) == written
