"""Spans around forwarding: the next hop gets their context, outcomes pass, retries link back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import msgspec
import pytest

from handlers.contract.request import Request
from handlers.contract.result import ErrorCode, answered_result, error_result
from handlers.forward.forward import NO_OPTIONS, AttemptOptions
from handlers.forward.gateway import Gateway
from handlers.forward.middleware.traced import AttemptSpans, TracedSender, traced_forward
from handlers.forward.outcome import Answered, Outcome, Retry
from handlers.telemetry.logs import current_trace
from handlers.telemetry.tracing import HANDLE_REQUEST, PROCESS_REQUEST, RE_ENQUEUE, Tracing, TracingOptions
from handlers.transport.transport import TransportOptions
from tests.servers.otlp import OtlpReceiver, running_otlp_receiver
from tests.servers.raw_http import RawHttp, answer, running_raw_http

REQUEST = Request(id="a", deadline=4e9, payload=b"{}", queue="q", attempt=2)
ANSWERED = Answered(answered_result("a", "", 200, b"said"))


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with running_otlp_receiver() as running:
        yield running


@pytest.fixture
async def tracing(receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Tracing]:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
    opened = Tracing(TracingOptions(receiver.url, "service", "1"))
    yield opened
    await opened.aclose()


@pytest.fixture
async def server() -> AsyncIterator[RawHttp]:
    async with running_raw_http() as running:
        running.reply(answer(200))
        yield running


async def traced(tracing: Tracing, outcome: Outcome, request: Request = REQUEST) -> Outcome:
    async def forward(_request: Request, _limits: AttemptOptions) -> Outcome:
        return outcome

    return await traced_forward(forward, AttemptSpans(tracing, PROCESS_REQUEST, {"q": "queue-1"}))(request, NO_OPTIONS)


async def test_the_next_hop_gets_the_calls_span_in_place_of_the_producers(
    tracing: Tracing, receiver: OtlpReceiver, server: RawHttp
) -> None:
    gateway = Gateway(TransportOptions())
    sender = TracedSender(gateway, tracing, event_too=True)
    await sender.send(f"{server.url}/v1/x", {"traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01"}, b"{}")
    await gateway.aclose()
    await tracing.aclose()

    (span,) = receiver.spans
    sent = server.received[0].header("traceparent")
    assert sent
    assert sent.startswith(f"00-{span.trace_id}-{span.span_id}-")
    assert server.received[0].header("ce-traceparent") == sent
    assert span.attributes["server.port"] == server.port
    assert span.attributes["url.path"] == "/v1/x"


async def test_a_call_that_fails_is_a_failed_span(tracing: Tracing, receiver: OtlpReceiver) -> None:
    class Broken:
        async def send(self, *_arguments: object) -> None:
            raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await TracedSender(Broken(), tracing).send("http://gateway/v1", {}, b"")  # type: ignore[arg-type]  # answers nothing
    await tracing.aclose()
    assert receiver.spans[0].is_error
    assert receiver.spans[0].attributes["error.type"] == "ConnectionResetError"


async def test_an_answer_passes_unchanged(tracing: Tracing, receiver: OtlpReceiver) -> None:
    assert await traced(tracing, ANSWERED) == ANSWERED
    await tracing.aclose()
    assert receiver.spans[0].attributes == {
        "request.id": "a",
        "queue.id": "queue-1",
        "queue.name": "q",
        "retry.count": 2,
        "http.response.status_code": 200,
    }


async def test_a_final_error_is_named(tracing: Tracing, receiver: OtlpReceiver) -> None:
    await traced(tracing, Answered(error_result("a", "", ErrorCode.GATE_DROPPED, "no")))
    await tracing.aclose()
    assert receiver.spans[0].attributes["error.category"] == "GATE_DROPPED"


async def test_a_retry_carries_its_span_and_the_next_attempt_links_to_it(
    tracing: Tracing, receiver: OtlpReceiver
) -> None:
    retry = await traced(tracing, Retry(1.5, "rejected"))
    assert isinstance(retry, Retry)
    again = msgspec.structs.replace(REQUEST, previous_traceparent=retry.traceparent)
    await traced(tracing, ANSWERED, again)
    await tracing.aclose()

    first, second = receiver.named(PROCESS_REQUEST)
    assert retry.traceparent.startswith(f"00-{first.trace_id}-{first.span_id}-")
    assert second.links == ((first.trace_id, first.span_id),)
    assert receiver.named(RE_ENQUEUE)[0].attributes["retry.delay_seconds"] == 1.5


async def test_only_a_repeated_submission_is_marked_as_repeated(tracing: Tracing, receiver: OtlpReceiver) -> None:
    async def forward(_request: Request, _options: AttemptOptions) -> Outcome:
        return Retry(1.0, "rejected")

    await traced_forward(forward, AttemptSpans(tracing, HANDLE_REQUEST))(REQUEST, NO_OPTIONS)
    await tracing.aclose()
    assert [span.name for span in receiver.spans] == [HANDLE_REQUEST]


@pytest.mark.parametrize("junk", ["", "x", "00-0-0-00", "\0", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
async def test_an_invalid_trace_context_counts_as_absent(tracing: Tracing, receiver: OtlpReceiver, junk: str) -> None:
    request = msgspec.structs.replace(REQUEST, metadata={"traceparent": junk}, previous_traceparent=junk)
    await traced(tracing, ANSWERED, request)
    await tracing.aclose()
    assert (receiver.spans[0].parent_id, receiver.spans[0].links) == ("", ())


async def test_the_trace_is_current_until_the_requests_task_ends(tracing: Tracing, receiver: OtlpReceiver) -> None:
    await traced(tracing, ANSWERED)
    found = current_trace.get()
    await tracing.aclose()
    assert found is not None
    assert found.trace_id == receiver.spans[0].trace_id


async def test_an_unavailable_receiver_of_traces_delays_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.5")  # shorter than the first pause before another try
    tracing = Tracing(TracingOptions("http://127.0.0.1:9", "service", "1"))
    assert await traced(tracing, ANSWERED) == ANSWERED
    await asyncio.wait_for(tracing.aclose(), 60)
