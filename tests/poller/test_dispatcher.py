"""From the poller to the dispatch door and back: what is the gateway's word and what is the platform's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handlers.contract.events import decode_event
from handlers.contract.request import Request, decode_body
from handlers.contract.result import ErrorCode, Result, answered_result, encode_result
from handlers.doors.cloudevents.dispatch import DispatchDoor
from handlers.doors.http_message import Delivery
from handlers.forward.gateway import Gateway, GatewayOptions
from handlers.forward.outcome import Answered, LastResponse, Outcome, Retry
from handlers.poller.dispatcher import HttpDispatcher
from tests.contract.json_texts import TEXT
from tests.servers.raw_http import Answer, End, RawHttp, answer, running_raw_http

BODY = b'{ "id":"a", "deadline": 4000000000 ,"payload":{"p": 1.0}}'


@pytest.fixture
async def server() -> AsyncIterator[RawHttp]:
    async with running_raw_http() as running:
        yield running


@pytest.fixture
async def dispatcher(server: RawHttp) -> AsyncIterator[HttpDispatcher]:
    gateway = Gateway(GatewayOptions(max_response_bytes=50_000))
    yield HttpDispatcher(
        gateway,
        server.url,
        timeout_seconds=20.0,
        tokens=lambda: ("new", "old"),
        draw=lambda: 0.5,
        clock=lambda: 4e9 - 60,
    )
    await gateway.aclose()


def request(request_id: str = "a", **fields: object) -> Request:
    return Request(id=request_id, deadline=4e9, payload=b"{}", queue="q", **fields)  # type: ignore[arg-type]  # fields of Request


def result(request_id: str = "a") -> bytes:
    return encode_result(answered_result(request_id, "", 200, b"said"))


async def test_the_event_carries_the_body_as_it_was_queued(
    dispatcher: HttpDispatcher, server: RawHttp
) -> None:
    given = request(
        "é\r\n%", attempt=3, request_token="t", labels={"tier": "batch"}, objective="low", priority=4
    )
    await dispatcher.dispatch(given, BODY)
    (received,) = server.received
    assert received.body == BODY
    assert received.header("authorization") == "Bearer new"
    event = decode_event([(n.encode(), v.encode()) for n, v in received.headers], received.body)
    assert (event.id, event.source, event.data) == ("é\r\n%", "/redis/q", BODY)
    assert event.extensions == {
        "remainingms": "60000",
        "queue": "q",
        "attempt": "3",
        "requesttoken": "t",
        "labels": '{"tier":"batch"}',
        "objective": "low",
        "priority": "4",
    }


async def test_a_result_of_this_request_is_final(dispatcher: HttpDispatcher, server: RawHttp) -> None:
    server.say(answer(200, result()))
    outcome = await dispatcher.dispatch(request(), BODY)
    assert isinstance(outcome, Answered)
    assert outcome.result == answered_result("a", "", 200, b"said")


@pytest.mark.parametrize("body", [b"", b"{}", b"<html>", b"\xff", result("b"), result()[:-4]])
async def test_a_200_that_is_no_result_of_this_request_is_tried_again(
    dispatcher: HttpDispatcher, server: RawHttp, body: bytes
) -> None:
    server.say(answer(200, body))
    assert await dispatcher.dispatch(request(), BODY) == Retry(1.0, "handler_lost", counts_attempt=False)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 301, 204])
async def test_the_platforms_own_answers_are_no_attempt(
    dispatcher: HttpDispatcher, server: RawHttp, status: int
) -> None:
    server.say(answer(status, b"" if status == 204 else b"no healthy upstream", {"retry-after": "99"}))
    outcome = await dispatcher.dispatch(request(), BODY)
    assert outcome == Retry(1.0, "handler_unavailable", counts_attempt=False)


@pytest.mark.parametrize("status", [401, 403, 404, 405])
async def test_a_door_that_does_not_let_us_in_is_asked_less_often(
    dispatcher: HttpDispatcher, server: RawHttp, status: int
) -> None:
    server.say(answer(status))
    assert await dispatcher.dispatch(request(), BODY) == Retry(10.0, "handler_refused", counts_attempt=False)


@pytest.mark.parametrize("status", [400, 413, 415])
async def test_a_delivery_that_the_door_cannot_read_is_final(
    dispatcher: HttpDispatcher, server: RawHttp, status: int
) -> None:
    server.say(answer(status))
    outcome = await dispatcher.dispatch(request(), BODY)
    assert isinstance(outcome, Answered)
    assert outcome.result.error_code == ErrorCode.INVALID_REQUEST


async def test_a_refused_connection_is_no_attempt(dispatcher: HttpDispatcher) -> None:
    gateway = Gateway(GatewayOptions())
    nobody = HttpDispatcher(gateway, "http://127.0.0.1:1/", timeout_seconds=5.0, draw=lambda: 0.5)
    outcome = await nobody.dispatch(request(), BODY)
    assert outcome == Retry(1.0, "handler_unavailable", counts_attempt=False)
    await gateway.aclose()


@pytest.mark.parametrize(
    "fault",
    [Answer(end=End.RESET), Answer(end=End.CLOSE), answer(200, b"half", declared=50, end=End.CLOSE)],
)
async def test_a_handler_that_went_with_the_request_is_an_attempt(
    dispatcher: HttpDispatcher, server: RawHttp, fault: Answer
) -> None:
    """It may be the request that killed it."""
    server.say(fault)
    assert await dispatcher.dispatch(request(), BODY) == Retry(1.0, "handler_lost", counts_attempt=True)


async def test_a_handler_that_hangs_is_given_up(server: RawHttp) -> None:
    gateway = Gateway(GatewayOptions())
    dispatcher = HttpDispatcher(gateway, server.url, timeout_seconds=0.1, draw=lambda: 0.5)
    server.say(Answer(end=End.HANG))
    outcome = await asyncio.wait_for(dispatcher.dispatch(request(), BODY), 20)
    assert outcome == Retry(1.0, "handler_lost", counts_attempt=True)
    await gateway.aclose()


async def test_an_answer_over_the_limit_is_final(dispatcher: HttpDispatcher, server: RawHttp) -> None:
    server.say(answer(200, b"", declared=10**9))
    outcome = await dispatcher.dispatch(request(), BODY)
    assert isinstance(outcome, Answered)
    assert outcome.result.error_code == ErrorCode.INFERENCE_ERROR


OUTCOMES = st.builds(
    Answered, st.builds(Result, st.just("a"), st.integers(0, 599), TEXT, TEXT, TEXT, TEXT)
) | st.builds(
    Retry,
    st.integers(0, 600_000).map(lambda ms: ms / 1_000),
    st.sampled_from(["rejected", "unavailable", "timeout", "gate_closed"]),
    st.none() | st.builds(LastResponse, st.integers(400, 599), TEXT.map(str.encode)),
    st.booleans(),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(outcome=OUTCOMES)
async def test_an_outcome_comes_through_door_and_wire_as_it_was(
    dispatcher: HttpDispatcher, server: RawHttp, outcome: Outcome
) -> None:
    """What the handler decided is what the poller settles, whatever it is."""
    door = DispatchDoor(max_request_bytes=1_000, clock=lambda: 4e9 - 60)
    await dispatcher.dispatch(request(), BODY)
    received = server.received[-1]
    decoded = await door.decode(
        Delivery([(n.encode(), v.encode()) for n, v in received.headers], received.body)
    )
    assert isinstance(decoded, tuple)
    inner, event = decoded
    assert inner == decode_body(BODY, queue="q")
    answered = await door.settle(event, outcome)
    server.say(answer(answered.status_code, answered.body, answered.headers))
    arrived = await dispatcher.dispatch(request(), BODY)
    assert msgspec.structs.replace(arrived, feedback=None) == outcome
