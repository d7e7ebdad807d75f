"""Between poller and dispatch door: answers of the gateway differ from those of the platform."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import msgspec
import pytest
from cloudevents.http import from_http
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handlers.contract.events import FRAME_BYTES, REQUEST_TYPE, Event, decode_event, wrapped_answer_bytes
from handlers.contract.request import MAX_ID_LENGTH, Request, decode_body
from handlers.contract.result import ErrorCode, Result, answered_result, encode_result
from handlers.doors.cloudevents.dispatch import DispatchDoor
from handlers.doors.door import Delivery
from handlers.forward.forward import AttemptOptions
from handlers.forward.gateway import Gateway
from handlers.forward.outcome import Answered, LastResponse, Outcome, Retry
from handlers.poller.dispatcher import HttpDispatcher
from handlers.telemetry.logs import RareWarning, get_logger
from handlers.transport.transport import TransportOptions
from tests.contract.json_texts import TEXT
from tests.servers.raw_http import Answer, End, RawHttp, Received, answer, running_raw_http

BODY = b'{ "id":"a", "deadline": 4000000000 ,"payload":{"p": 1.0}}'
OPTIONS = AttemptOptions(body=BODY)


@pytest.fixture
async def server() -> AsyncIterator[RawHttp]:
    async with running_raw_http() as running:
        yield running


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    gateway = Gateway(TransportOptions(connect_seconds=600, max_response_bytes=50_000))
    yield gateway
    await gateway.aclose()


@pytest.fixture
def dispatcher(gateway: Gateway, server: RawHttp) -> HttpDispatcher:
    return HttpDispatcher(
        gateway,
        server.url,
        timeout_seconds=600.0,
        tokens=lambda: ("new", "old"),
        jitter=lambda: 0.5,
        clock=lambda: 4e9 - 60,
    )


def request(request_id: str = "a", **fields: object) -> Request:
    return Request(id=request_id, deadline=4e9, payload=b"{}", queue="q", **fields)  # type: ignore[arg-type]  # fields of Request


def encoded(received: Received) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in received.headers]


def result(request_id: str = "a") -> bytes:
    return encode_result(answered_result(request_id, "", 200, b"said"))


async def test_the_event_carries_the_body_as_it_was_queued(dispatcher: HttpDispatcher, server: RawHttp) -> None:
    given = request("é\r\n%", attempt=3, request_token="t", labels={"tier": "batch"}, objective="low", priority=4)
    await dispatcher.forward(given, OPTIONS)
    (received,) = server.received
    assert received.header("authorization") == "Bearer new"
    event = decode_event(encoded(received), received.body)
    assert (event.id, event.source, event.data) == ("é\r\n%", "/redis/q", BODY)
    assert event.extensions == {
        "datacontenttype": "application/json",
        "remainingms": "60000",
        "queue": "q",
        "attempt": "3",
        "requesttoken": "t",
        "labels": '{"tier":"batch"}',
        "objective": "low",
        "priority": "4",
    }


async def test_the_event_is_what_the_cloudevents_sdk_reads(dispatcher: HttpDispatcher, server: RawHttp) -> None:
    await dispatcher.forward(request("é\r\n%", request_token="t", labels={"a": "b"}), OPTIONS)
    (received,) = server.received
    read = from_http(dict(received.headers), received.body)
    assert (read["id"], read["source"], read["specversion"]) == ("é\r\n%", "/redis/q", "1.0")
    assert (read["requesttoken"], read["labels"]) == ("t", '{"a":"b"}')
    assert read.data == json.loads(BODY)


@pytest.mark.parametrize("character", ["x", "é", "語", "😀", "%", '"', "\x01", "\u2028"])
async def test_client_data_is_never_sent_in_a_header(
    dispatcher: HttpDispatcher, server: RawHttp, character: str
) -> None:
    long = character * MAX_ID_LENGTH
    given = request(long, request_token=long, labels={long: long})
    await dispatcher.forward(given, OPTIONS)
    (received,) = server.received
    assert sum(len(name) + len(value) for name, value in received.headers) < 512
    event = decode_event(encoded(received), received.body)
    assert (event.id, event.extensions["requesttoken"], event.data) == (long, long, BODY)


@pytest.mark.parametrize("name", ["labels", "request_token"])
async def test_a_field_that_does_not_fit_into_the_event_is_invalid_at_once(
    dispatcher: HttpDispatcher, server: RawHttp, name: str
) -> None:
    large = "x" * FRAME_BYTES
    given = request(labels={"a": large}) if name == "labels" else request(request_token=large)
    outcome = await dispatcher.forward(given, OPTIONS)
    assert isinstance(outcome, Answered)
    assert outcome.result.error_code == ErrorCode.INVALID_REQUEST
    assert f"internal.{name}" in outcome.result.error_message
    assert server.received == []


@pytest.mark.parametrize("byte", [b"\x00", b"\xff", b"\xc3\xa9", b"\\", b"a"])
@pytest.mark.parametrize("is_retry", [False, True])
def test_no_answer_of_a_permitted_response_is_over_the_pollers_limit(byte: bytes, is_retry: bool) -> None:
    most = 90_000
    body = (byte * most)[:most]
    event = Event(id="a", source="/redis/q", type=REQUEST_TYPE, data=b"", extensions={"queue": "q"})
    event = msgspec.structs.replace(event, is_structured=True)
    outcome: Outcome = Answered(answered_result("a", "", 200, body, keeps_bytes=True))
    if is_retry:
        outcome = Retry(1.0, "server_error", LastResponse(500, body))
    door = DispatchDoor(max_request_bytes=1_000)
    answered = asyncio.run(door.settle(event, outcome))
    assert len(answered.body) <= wrapped_answer_bytes(most)


async def test_a_door_of_an_earlier_version_is_understood(dispatcher: HttpDispatcher, server: RawHttp) -> None:
    """It answers in binary mode, whose body is the result itself."""
    server.reply(answer(200, result(), {"content-type": "application/json", "ce-bandheadroom": "0.5"}))
    outcome = await dispatcher.forward(request(), OPTIONS)
    assert isinstance(outcome, Answered)
    assert outcome.feedback is not None
    assert outcome.feedback.band_headroom == 0.5


async def test_a_result_of_this_request_is_final(dispatcher: HttpDispatcher, server: RawHttp) -> None:
    server.reply(answer(200, result()))
    outcome = await dispatcher.forward(request(), OPTIONS)
    assert isinstance(outcome, Answered)
    assert outcome.result == answered_result("a", "", 200, b"said")


@pytest.mark.parametrize("body", [b"", b"{}", b"<html>", b"\xff", result("b"), result()[:-4]])
async def test_a_200_without_this_requests_result_is_retried(
    dispatcher: HttpDispatcher, server: RawHttp, body: bytes
) -> None:
    server.reply(answer(200, body))
    assert await dispatcher.forward(request(), OPTIONS) == Retry(1.0, "handler_lost", counts_attempt=False)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 301, 204])
async def test_a_response_of_the_platform_does_not_count_as_an_attempt(
    dispatcher: HttpDispatcher, server: RawHttp, status: int
) -> None:
    server.reply(answer(status, b"" if status == 204 else b"no healthy upstream", {"retry-after": "99"}))
    outcome = await dispatcher.forward(request(), OPTIONS)
    assert outcome == Retry(1.0, "handler_unavailable", counts_attempt=False)


@pytest.mark.parametrize("status", [401, 403, 404, 405])
async def test_a_door_that_refuses_the_poller_is_called_less_often(
    dispatcher: HttpDispatcher, server: RawHttp, status: int
) -> None:
    server.reply(answer(status))
    assert await dispatcher.forward(request(), OPTIONS) == Retry(10.0, "handler_refused", counts_attempt=False)


@pytest.mark.parametrize(
    ("status", "setting"),
    [(401, "DISPATCH_TOKEN"), (403, "DISPATCH_TOKEN"), (404, "HANDLER_URL"), (405, "HANDLER_URL")],
)
async def test_a_refused_poller_logs_the_status_and_the_setting_to_correct_once_a_minute(
    gateway: Gateway, server: RawHttp, status: int, setting: str, caplog: pytest.LogCaptureFixture
) -> None:
    refusals = RareWarning(get_logger("poller"), "handler refused the poller", clock=lambda: 0.0)
    refused = HttpDispatcher(gateway, f"{server.url}/", timeout_seconds=600.0, refusals=refusals)
    server.reply(answer(status))
    for _ in range(3):
        await refused.forward(request(), OPTIONS)
    (fields,) = [getattr(record, "fields", {}) for record in caplog.records]
    assert fields["status"] == status
    assert setting in fields["fix"]


@pytest.mark.parametrize("status", [400, 413, 415])
async def test_a_delivery_that_the_door_cannot_read_is_final(
    dispatcher: HttpDispatcher, server: RawHttp, status: int
) -> None:
    server.reply(answer(status))
    outcome = await dispatcher.forward(request(), OPTIONS)
    assert isinstance(outcome, Answered)
    assert outcome.result.error_code == ErrorCode.INVALID_REQUEST


async def test_a_refused_connection_does_not_count_as_an_attempt(dispatcher: HttpDispatcher) -> None:
    gateway = Gateway(TransportOptions())
    nobody = HttpDispatcher(gateway, "http://127.0.0.1:1/", timeout_seconds=600.0, jitter=lambda: 0.5)
    outcome = await nobody.forward(request(), OPTIONS)
    assert outcome == Retry(1.0, "handler_unavailable", counts_attempt=False)
    await gateway.aclose()


@pytest.mark.parametrize(
    "fault",
    [Answer(end=End.RESET), Answer(end=End.CLOSE), answer(200, b"half", declared=50, end=End.CLOSE)],
)
async def test_a_connection_lost_during_the_request_counts_as_an_attempt(
    dispatcher: HttpDispatcher, server: RawHttp, fault: Answer
) -> None:
    """It may be the request that killed it."""
    server.reply(fault)
    assert await dispatcher.forward(request(), OPTIONS) == Retry(1.0, "handler_lost", counts_attempt=True)


async def test_a_handler_that_hangs_is_given_up(server: RawHttp) -> None:
    gateway = Gateway(TransportOptions())
    dispatcher = HttpDispatcher(gateway, server.url, timeout_seconds=0.1, jitter=lambda: 0.5)
    server.reply(Answer(end=End.HANG))
    outcome = await asyncio.wait_for(dispatcher.forward(request(), OPTIONS), 60)
    assert outcome == Retry(1.0, "handler_lost", counts_attempt=True)
    await gateway.aclose()


async def test_an_answer_over_the_limit_is_final(dispatcher: HttpDispatcher, server: RawHttp) -> None:
    server.reply(answer(200, b"", declared=10**9))
    outcome = await dispatcher.forward(request(), OPTIONS)
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
async def test_an_outcome_is_unchanged_after_door_and_wire(
    dispatcher: HttpDispatcher, server: RawHttp, outcome: Outcome
) -> None:
    """The poller settles the handler's outcome unchanged."""
    door = DispatchDoor(max_request_bytes=1_000, clock=lambda: 4e9 - 60)
    await dispatcher.forward(request(), OPTIONS)
    received = server.received[-1]
    decoded = await door.decode(Delivery(encoded(received), received.body))
    assert isinstance(decoded, tuple)
    inner, event = decoded
    assert inner == decode_body(BODY, queue="q")
    answered = await door.settle(event, outcome)
    server.reply(answer(answered.status_code, answered.body, answered.headers))
    arrived = await dispatcher.forward(request(), OPTIONS)
    assert msgspec.structs.replace(arrived, feedback=None) == outcome
