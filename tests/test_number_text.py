"""Numbers in text of other processes: exact, bounded, and never an exception."""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.backoff import parse_retry_after
from handlers.batch.lines import decode_output
from handlers.contract.events import STRUCTURED, AnswerEvent, encode_answer
from handlers.contract.request import Request
from handlers.doors.auth.google_keys import fresh_seconds
from handlers.forward.forward import NO_OPTIONS
from handlers.forward.gateway import GatewayResponse
from handlers.forward.outcome import Answered, Retry
from handlers.number_text import decimal, parse_duration, whole
from handlers.poller.dispatcher import HANDLER_LOST, HttpDispatcher
from handlers.redis_store.queue.cancellations import Cancellation

HOSTILE = [
    "nan",
    "inf",
    "-inf",
    "1e400",
    "9" * 5_000,
    "²",
    "٣",
    "1_000",
    "0x1",
    " 1",
    "1 ",
    "1\n",
    "--1",
    ".",
    "e",
    "",
]
READERS: dict[str, Callable[[str], object]] = {
    "Retry-After": lambda text: parse_retry_after(text, 0.0),
    "max-age": lambda text: fresh_seconds({"Cache-Control": f"max-age={text}", "Age": text}),
    "duration": parse_duration,
    "batch output": lambda text: decode_output("b", msgspec.json.encode({"id": f"batch_req_b_{text}"})),
    "cancellation": lambda text: Cancellation(b"id\0token-" + text.encode(), 1).score(),
}


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_no_text_breaks_a_reader(reader: Callable[[str], object], text: str) -> None:
    found = reader(text)
    assert not isinstance(found, float) or math.isfinite(found)


@given(st.integers(0, 10**18 - 1))
def test_a_whole_number_is_read_as_it_was_written(number: int) -> None:
    assert whole(str(number)) == whole(str(number).encode()) == number


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_finite_number_is_read_as_it_was_written(number: float) -> None:
    assert decimal(repr(number)) == decimal(repr(number).encode()) == number


@given(st.text() | st.binary())
def test_invalid_text_returns_none_and_raises_no_error(text: str | bytes) -> None:
    digits = text.decode("latin-1") if isinstance(text, bytes) else text
    is_whole = bool(digits) and set(digits) <= set("0123456789") and len(digits) <= 18
    assert (whole(text) is not None) is is_whole
    found = decimal(text)
    assert found is None or math.isfinite(found)


class Handler:
    """A handler that gives one answer."""

    def __init__(self, response: GatewayResponse) -> None:
        self.response = response

    async def send(self, *_arguments: object) -> GatewayResponse:
        return self.response


@pytest.mark.parametrize("text", [*HOSTILE[:-1], "-5"])
async def test_a_delay_that_a_handler_cannot_mean_is_a_lost_answer(text: str) -> None:
    event = AnswerEvent("1.0", "e", "/s", "t", "r", reason="rejected", delayseconds=text)
    response = GatewayResponse(503, {"content-type": STRUCTURED}, encode_answer(event))
    dispatcher = HttpDispatcher(Handler(response), "http://handler", timeout_seconds=1, jitter=lambda: 0.5)
    outcome = await dispatcher.forward(Request(id="r", deadline=2e9, payload=b"{}"), NO_OPTIONS)
    assert isinstance(outcome, Retry)
    assert (outcome.reason, outcome.delay_seconds) == (HANDLER_LOST, 1.0)


@pytest.mark.parametrize("text", HOSTILE)
async def test_invalid_feedback_does_not_lose_the_answer(text: str) -> None:
    headers = {"ce-queuedurationms": text, "ce-bandheadroom": text}
    response = GatewayResponse(200, headers, b'{"id":"r","status_code":200,"payload":"{}"}')
    dispatcher = HttpDispatcher(Handler(response), "http://handler", timeout_seconds=1)
    outcome = await dispatcher.forward(Request(id="r", deadline=2e9, payload=b"{}"), NO_OPTIONS)
    assert isinstance(outcome, Answered)
    assert outcome.feedback is not None
    assert outcome.feedback.queue_duration_ms is None
