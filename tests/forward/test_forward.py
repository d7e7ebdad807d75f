"""One attempt through the real client: every answer and every fault has its outcome from the design's table."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import httpx
import pytest

from handlers.contract.request import Request
from handlers.contract.result import ErrorCode
from handlers.forward.forward import NO_OPTIONS, AttemptOptions, Forwarder
from handlers.forward.gateway import Gateway, GatewayResponse
from handlers.forward.middleware.breaker import has_failed
from handlers.forward.outcome import Answered, Outcome, Retry
from handlers.forward.route import Route, Routes
from tests.forward.conftest import LIMIT
from tests.servers.raw_http import Answer, End, RawHttp, answer
from tests.waiting import wait_until_async

NOW = 1_800_000_000.0


class Clock:
    """A clock in Unix seconds that a test advances."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def forwarder(gateway: Gateway, server: RawHttp, clock: Clock) -> Forwarder:
    routes = Routes(
        default=Route(server.url),
        by_queue={"chat": Route(server.url + "/pool", path="/v1/chat/completions", inference_objective="low")},
    )
    return Forwarder(gateway, routes, request_timeout_seconds=600.0, clock=clock, jitter=lambda: 0.5)


def request(**fields: Any) -> Request:
    given = {"id": "a", "deadline": NOW + 1_000, "payload": b'{"p":1}', "request_token": "t", **fields}
    return Request(**given)


def final(outcome: Outcome) -> tuple[int, str, str]:
    assert isinstance(outcome, Answered), outcome
    result = outcome.result
    assert (result.id, result.request_token) == ("a", "t")
    return result.status_code, result.error_code, result.payload


def retried(outcome: Outcome) -> Retry:
    assert isinstance(outcome, Retry), outcome
    return outcome


@pytest.mark.parametrize("status", [200, 201, 299, 301, 302, 307, 400, 401, 403, 404, 413, 422, 451])
async def test_2xx_3xx_and_4xx_are_final(forwarder: Forwarder, server: RawHttp, status: int) -> None:
    server.reply(answer(status, b"said", {"location": "http://127.0.0.1:1/evil"}))
    assert final(await forwarder.forward(request())) == (status, "", "said")
    assert len(server.received) == 1


@pytest.mark.parametrize("status", [408, 425, 429, 500, 501, 502, 503, 504, 599])
async def test_capacity_and_server_errors_are_retried_with_the_last_response(
    forwarder: Forwarder, server: RawHttp, status: int
) -> None:
    server.reply(answer(status, b"busy"))
    outcome = retried(await forwarder.forward(request()))
    assert outcome.last is not None
    assert (outcome.last.status_code, outcome.last.body) == (status, b"busy")
    assert (outcome.delay_seconds, outcome.counts_attempt) == (1.5, True)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Answer(end=End.RESET, reads_request=False), "reset"),
        (Answer(end=End.RESET), "reset"),
        (Answer(end=End.CLOSE), "reset"),
        (answer(200, b"half", declared=40, end=End.CLOSE), "broken_body"),
        (Answer(b"\x00\x01garbage\r\n\r\n", end=End.CLOSE), "broken_response"),
    ],
)
async def test_an_attempt_without_a_complete_response_is_retried(
    forwarder: Forwarder, server: RawHttp, fault: Answer, reason: str
) -> None:
    server.reply(fault)
    outcome = retried(await forwarder.forward(request(attempt=1)))
    assert (outcome.reason, outcome.last, outcome.delay_seconds) == (reason, None, 3.0)


async def test_an_undecodable_refusal_is_retried_by_its_status(forwarder: Forwarder, server: RawHttp) -> None:
    server.reply(answer(503, b"busy", {"content-encoding": "gzip"}))
    outcome = retried(await forwarder.forward(request()))
    assert outcome.reason == "unavailable"
    assert outcome.last is not None
    assert (outcome.last.status_code, outcome.last.body) == (503, b"")


@pytest.mark.parametrize("status", [200, 404])
async def test_an_undecodable_answer_is_final_with_a_reason(forwarder: Forwarder, server: RawHttp, status: int) -> None:
    server.reply(answer(status, gzip.compress(b"x" * 99)[:-9], {"content-encoding": "gzip"}))
    outcome = await forwarder.forward(request())
    assert isinstance(outcome, Answered)
    assert outcome.result.error_code == "INFERENCE_ERROR"
    assert "cannot be decoded as gzip" in outcome.result.error_message
    assert len(server.received) == 1


async def test_a_body_over_the_limit_is_a_final_error(forwarder: Forwarder, server: RawHttp) -> None:
    for large in (answer(200, b"x" * (LIMIT + 1)), answer(200, b"", declared=10**12)):
        server.reply(large)
        status, code, payload = final(await forwarder.forward(request()))
        assert (status, code) == (0, ErrorCode.INFERENCE_ERROR)
        assert "error" in json.loads(payload)


async def test_a_binary_body_is_a_result(forwarder: Forwarder, server: RawHttp) -> None:
    server.reply(answer(200, b"\xffok"))
    assert final(await forwarder.forward(request())) == (200, "", "�ok")


@pytest.mark.parametrize("limits", [AttemptOptions(0.05), AttemptOptions(0.0)], ids=["ack deadline", "no time left"])
async def test_a_hang_is_retried_after_what_the_transport_allows(
    forwarder: Forwarder, server: RawHttp, limits: AttemptOptions
) -> None:
    server.reply(Answer(end=End.HANG))
    async with asyncio.timeout(60):
        assert retried(await forwarder.forward(request(), limits)).reason == "timeout"


async def test_a_hang_past_the_deadline_is_deadline_exceeded(
    forwarder: Forwarder, server: RawHttp, clock: Clock
) -> None:
    server.reply(Answer(end=End.HANG))
    left = 0.1
    work = asyncio.create_task(forwarder.forward(request(deadline=NOW + left)))
    await asyncio.sleep(0)
    clock.now += left
    status, code, _ = final(await work)
    assert (status, code) == (0, ErrorCode.DEADLINE_EXCEEDED)


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
async def test_a_clock_that_is_set_during_an_attempt_changes_no_retry(
    forwarder: Forwarder, server: RawHttp, clock: Clock, jump: float
) -> None:
    server.reply(answer(503, b"busy"))
    usual = retried(await forwarder.forward(request()))
    server.is_holding = True
    attempt = asyncio.create_task(forwarder.forward(request()))
    await wait_until_async(lambda: len(server.received) == 2, "the second request")
    clock.now += jump
    server.is_holding = False
    assert retried(await attempt) == usual


async def test_a_request_past_its_deadline_is_not_sent(forwarder: Forwarder, server: RawHttp) -> None:
    for deadline in (NOW, NOW - 1, 1.0):
        assert final(await forwarder.forward(request(deadline=deadline)))[1] == ErrorCode.DEADLINE_EXCEEDED
    assert server.received == []


async def test_the_last_response_is_final_if_no_further_attempt_fits(forwarder: Forwarder, server: RawHttp) -> None:
    server.reply(answer(503, b"busy", {"retry-after": "30"}))
    for _ in range(20):  # the deadline also ends the attempt, on a busy machine before the response
        found = final(await forwarder.forward(request(deadline=NOW + 1.5)))
        if found[1] != ErrorCode.DEADLINE_EXCEEDED:
            break
    assert found == (503, "", "busy")
    limits = AttemptOptions(earliest_retry_seconds=600.0)
    assert final(await forwarder.forward(request(deadline=NOW + 500), limits)) == (503, "", "busy")


@pytest.mark.parametrize(
    ("asked", "delay"),
    [
        ("30", 30 * 1.125),
        ("1000000000", 500 * 1.125),
        ("Fri, 15 Jan 2027 08:01:40 GMT", 100 * 1.125),
        ("1", 1.5),
        *((garbage, 1.5) for garbage in ("-5", "soon", "nan", "", "1e9", "\xff")),
    ],
)
async def test_retry_after_is_honoured_within_half_of_the_time_left(
    forwarder: Forwarder, server: RawHttp, asked: str, delay: float
) -> None:
    server.reply(answer(429, b"", {"Retry-After": asked}))
    began_at = asyncio.get_running_loop().time()
    outcome = retried(await forwarder.forward(request()))
    passed = asyncio.get_running_loop().time() - began_at
    assert outcome.reason == "rejected"
    assert delay - passed <= outcome.delay_seconds <= delay


async def test_each_queue_has_its_route(forwarder: Forwarder, server: RawHttp) -> None:
    await forwarder.forward(request(queue="chat"))
    await forwarder.forward(request(queue="unknown"))
    await forwarder.forward(request(queue="chat", endpoint="/v1/embeddings"))
    assert [received.path for received in server.received] == [
        "/pool/v1/chat/completions",
        "/v1/completions",
        "/pool/v1/embeddings",
    ]
    assert [r.header("x-llm-d-inference-objective") for r in server.received] == ["low", None, "low"]


async def test_an_endpoint_out_of_bounds_is_final_and_nothing_is_sent(forwarder: Forwarder, server: RawHttp) -> None:
    status, code, _ = final(await forwarder.forward(request(endpoint="//127.0.0.1:1/v1/x")))
    assert (status, code) == (0, ErrorCode.INVALID_REQUEST)
    assert server.connections == 0


async def test_the_payload_reaches_the_gateway_byte_for_byte(forwarder: Forwarder, server: RawHttp) -> None:
    payload = '{ "temperature": 1.0,\n "prompt":"é\\u00e9" ,"big":12345678901234567890.10 }'.encode()
    await forwarder.forward(request(payload=payload), NO_OPTIONS)
    assert server.received[0].body == payload


async def test_a_cancelled_attempt_ends_at_once(forwarder: Forwarder, server: RawHttp) -> None:
    server.reply(Answer(end=End.HANG))
    work = asyncio.create_task(forwarder.forward(request()))
    await asyncio.sleep(0)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work


class Faulty:
    """A client that fails before anything is sent."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def send(self, *_arguments: object) -> GatewayResponse:
        raise self.error


OWN = [
    httpx.LocalProtocolError("a header contains a line break"),
    httpx.UnsupportedProtocol("ftp"),
    httpx.InvalidURL("no URL"),
    UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"),
]


@pytest.mark.parametrize("error", OWN, ids=lambda error: type(error).__name__)
async def test_a_fault_of_our_own_before_sending_is_final_and_not_the_gateways(error: Exception) -> None:
    routes = Routes(Route("http://gateway.test"), {})
    forwarder = Forwarder(Faulty(error), routes, request_timeout_seconds=5.0, clock=lambda: NOW)
    request = Request(id="a", deadline=NOW + 600, payload=b"{}")
    outcome = await forwarder.forward(request)
    assert isinstance(outcome, Answered)
    assert outcome.result.error_code == ErrorCode.INVALID_REQUEST
    assert has_failed(outcome) is None
