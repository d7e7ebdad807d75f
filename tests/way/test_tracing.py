"""One trace from producer to gateway through real processes, sent to an OTLP receiver."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator

import pytest
import redis

from handlers.demo.stack import Stack, StackOptions
from handlers.demo.valkey import Valkey, find_valkey
from handlers.telemetry.tracing import HANDLE_REQUEST, HTTP_REQUEST, PROCESS_REQUEST, RE_ENQUEUE
from tests.servers.forked import LONG_REDIS_TIMEOUT, ForkedChild
from tests.servers.otlp import OtlpReceiver, running_otlp_receiver
from tests.servers.raw_http import answer
from tests.waiting import wait_until
from tests.way.push_rig import open_rig

QUEUE = "request-sortedset"
TRACE, PRODUCER_SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CONSUMER, SERVER, CLIENT = 5, 2, 3


@pytest.fixture(scope="module")
def receiver() -> Iterator[OtlpReceiver]:
    with running_otlp_receiver() as running:
        yield running


@pytest.fixture(scope="module")
def traced_stack(receiver: OtlpReceiver) -> Iterator[Stack]:
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
        "OTEL_BSP_SCHEDULE_DELAY": "200",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "60",
        "SHUTDOWN_GRACE_SECONDS": "60",
        **LONG_REDIS_TIMEOUT,
    }
    with Stack(StackOptions(child=ForkedChild, has_pubsub=False, variables=variables)) as running:
        yield running


def submit(stack: Stack, request_id: str, metadata: dict[str, str], payload: dict[str, object]) -> None:
    deadline = int(time.time()) + 600
    body = {"id": request_id, "deadline": deadline, "payload": payload, "metadata": metadata}
    with redis.Redis.from_url(stack.redis_url, socket_timeout=60) as store:
        store.zadd(QUEUE, {json.dumps(body): deadline})


def test_producer_poller_handler_and_gateway_call_are_one_trace(traced_stack: Stack, receiver: OtlpReceiver) -> None:
    submit(traced_stack, "t1", {"traceparent": f"00-{TRACE}-{PRODUCER_SPAN}-01"}, {"prompt": "hi"})

    (process,) = receiver.wait_for(PROCESS_REQUEST, 1, "t1")
    (handle,) = receiver.wait_for(HANDLE_REQUEST, 1, "t1")
    receiver.wait_for(HTTP_REQUEST, 2)
    calls = {call.parent_id: call for call in receiver.named(HTTP_REQUEST) if call.trace_id == TRACE}

    assert {process.trace_id, handle.trace_id} == {TRACE}
    assert process.parent_id == PRODUCER_SPAN
    assert handle.parent_id == calls[process.span_id].span_id
    assert handle.span_id in calls, "the call to the gateway lies below the handler's span"
    assert (process.kind, handle.kind, calls[handle.span_id].kind) == (CONSUMER, SERVER, CLIENT)
    assert process.attributes["queue.name"] == process.attributes["queue.id"] == QUEUE
    assert process.attributes["retry.count"] == 0
    assert calls[handle.span_id].attributes["http.response.status_code"] == 200
    assert {span.service for span in receiver.spans} == {"llm-d-async"}
    assert not process.is_error


def test_attempts_are_one_linked_trace_even_without_a_producers_trace(
    traced_stack: Stack, receiver: OtlpReceiver
) -> None:
    submit(traced_stack, "t2", {}, {"simulate": {"key": "t2", "status": 503, "times": 1}})

    first, second = sorted(
        receiver.wait_for(PROCESS_REQUEST, 2, "t2"), key=lambda span: int(span.attributes["retry.count"])
    )
    (queued_again,) = receiver.wait_for(RE_ENQUEUE, 1, "t2")

    assert first.trace_id == second.trace_id == queued_again.trace_id
    assert first.is_error
    assert first.attributes["error.category"] == queued_again.attributes["retry.reason"]
    assert queued_again.links == ((first.trace_id, first.span_id),)
    assert second.links == ((first.trace_id, first.span_id),)
    assert not second.is_error


def test_a_producer_that_did_not_sample_gets_no_spans(traced_stack: Stack, receiver: OtlpReceiver) -> None:
    unsampled = "0af7651916cd43dd8448eb211c80319c"
    submit(traced_stack, "t3", {"traceparent": f"00-{unsampled}-{PRODUCER_SPAN}-00"}, {"prompt": "hi"})
    submit(traced_stack, "t4", {}, {"prompt": "hi"})

    receiver.wait_for(PROCESS_REQUEST, 1, "t4")
    with redis.Redis.from_url(traced_stack.redis_url, socket_timeout=60) as store:
        assert store.blpop(["result-list"], timeout=60)
    assert not receiver.named(PROCESS_REQUEST, "t3")


def test_the_lines_about_a_request_name_its_trace(traced_stack: Stack, receiver: OtlpReceiver) -> None:
    submit(
        traced_stack,
        "t5",
        {"traceparent": f"00-{TRACE[::-1]}-{PRODUCER_SPAN}-01"},
        {"simulate": {"key": "t5", "status": 503, "times": 1}},
    )
    receiver.wait_for(PROCESS_REQUEST, 2, "t5")

    def about_it() -> list[str]:
        return [line for line in traced_stack.children["poller"].output().splitlines() if '"t5"' in line]

    lines = wait_until(about_it, "a line about it")
    assert all(json.loads(line)["trace_id"] == TRACE[::-1] for line in lines)


async def test_with_a_dedup_store_a_nacked_push_is_linked_to_its_previous_attempt(
    receiver: OtlpReceiver,
) -> None:
    with Valkey(find_valkey()) as memory:
        variables = {
            "DEDUPE_REDIS_URL": memory.url,
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "60",
            "MIN_REDELIVERY_SECONDS": "0",
            **LONG_REDIS_TIMEOUT,
        }
        async with open_rig(**variables) as rig:
            rig.gateway.reply(answer(503, b"{}"))
            assert (await rig.push("pushed-twice")).status_code in {429, 503}
            rig.gateway.reply(answer(200, b"{}"))
            assert (await rig.push("pushed-twice")).status_code == 204
            # Here, because the door's end does not wait long for an export.
            spans = await asyncio.to_thread(receiver.wait_for, PROCESS_REQUEST, 2, "pushed-twice")

    (second,) = [span for span in spans if not span.is_error]
    (first,) = [span for span in spans if span.is_error]
    assert second.links == ((first.trace_id, first.span_id),)
