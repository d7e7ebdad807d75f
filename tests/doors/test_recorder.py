"""Metrics and logs of a door's deliveries, with a scripted inner door."""

from __future__ import annotations

import time

import pytest

from handlers.contract.request import Request
from handlers.contract.result import ErrorCode, answered_result, error_result
from handlers.doors.door import Answer, Delivery, DeliveryRecorder, handle
from handlers.forward.forward import NO_OPTIONS, AttemptOptions
from handlers.forward.middleware.account import QueueOf, counted_attempts, counted_calls
from handlers.forward.outcome import Answered, Outcome, Retry
from handlers.telemetry.logs import get_logger
from handlers.telemetry.metrics import DoorMetrics, Metrics, QueueMetrics
from tests.telemetry.exposition import Page, page_of

QUEUE = {"queue_id": "sub", "queue_name": "sub", "pool_name": "default"}
GOOD = Answered(answered_result("a", "", 200, b'{"usage": {"prompt_tokens": 3}}'))
REQUEST = Request(id="a", queue="sub", deadline=time.time() + 60, payload=b"{}", created=time.time() - 5)


class Inside:
    """A door with a scripted request and answer."""

    def __init__(self, decoded: Request | Answered | Answer, answer: Answer) -> None:
        self._decoded = decoded
        self._answer = answer

    async def decode(self, _delivery: Delivery) -> tuple[Request | Answered, str] | Answer:
        return self._decoded if isinstance(self._decoded, Answer) else (self._decoded, "sub")

    def limits(self, context: str) -> AttemptOptions:
        return NO_OPTIONS

    async def settle(self, context: str, outcome: Outcome) -> Answer:
        return self._answer


async def walked(
    outcome: Outcome,
    *,
    decoded: Request | Answered | Answer = REQUEST,
    status: int = 204,
    queue_of: QueueOf | None = None,
) -> Page:
    """The metrics page after one delivery with these outcomes."""
    metrics = Metrics()
    door_metrics = DoorMetrics(metrics, "pubsub_push")

    def of_queue(name: str) -> QueueMetrics | None:
        return metrics.of_queue(name, name, "default")

    async def forward(_request: Request, _limits: AttemptOptions) -> Outcome:
        return outcome

    queues = queue_of or of_queue
    door = Inside(decoded, Answer(status))
    recorder = DeliveryRecorder[str](lambda context: context, get_logger("test"), (door_metrics, queues))
    counted = counted_attempts(counted_calls(forward, queues), queues, door_metrics)
    await handle(door, Delivery([], b""), counted, recorder)
    return page_of(metrics)


async def test_an_answer_is_counted_from_its_arrival_to_its_record() -> None:
    page = await walked(GOOD)
    ones = (
        *("request_total", "dispatched_requests_total", "successful_requests_total"),
        *("message_latency_time_millis_count", "attempts_per_request_count"),
        *("result_publish_time_millis_count", "queue_residence_time_millis_count"),
    )
    assert {name: page.value(name, **QUEUE) for name in ones} == dict.fromkeys(ones, 1)
    assert page.value("tokens_total", **QUEUE, direction="input") == 3
    assert page.value("inflight_requests", **QUEUE) == 0
    assert page.value("handler_deliveries_total", door="pubsub_push", outcome="answered") == 1
    assert page.value("handler_inflight_deliveries", door="pubsub_push") == 0


async def test_an_unrecorded_result_counts_as_a_nack() -> None:
    page = await walked(GOOD, status=503)
    assert page.value("successful_requests_total", **QUEUE) == 0
    assert page.value("nacks_total", **QUEUE, reason="not_recorded") == 1
    assert page.value("handler_deliveries_total", door="pubsub_push", outcome="not_recorded") == 1


async def test_a_retry_counts_by_its_reason() -> None:
    page = await walked(Retry(5.0, "rejected"), status=429)
    assert page.value("nacks_total", **QUEUE, reason="rejected") == 1
    assert page.value("shedded_requests_total", **QUEUE) == 1
    assert page.value("handler_deliveries_total", door="pubsub_push", outcome="retry") == 1


async def test_an_invalid_request_counts_as_a_failure_without_an_attempt() -> None:
    invalid = Answered(error_result("a", "", ErrorCode.INVALID_REQUEST, "no deadline"))
    page = await walked(GOOD, decoded=invalid)
    assert page.value("failed_requests_total", **QUEUE) == 1
    assert page.value("request_total", **QUEUE) == 0


async def test_a_dead_lettered_delivery_is_a_dead_letter() -> None:
    gone = Answered(error_result("a", "", ErrorCode.UNDELIVERABLE, "given up"))
    page = await walked(GOOD, decoded=gone)
    assert page.value("dead_letters_total", **QUEUE) == 1


async def test_an_invalid_delivery_counts_nothing() -> None:
    page = await walked(GOOD, decoded=Answer(400))
    assert page.value("handler_deliveries_total", door="pubsub_push", outcome="answered") == 0


async def test_a_request_counted_by_the_poller_counts_only_as_a_delivery() -> None:
    page = await walked(GOOD, queue_of=lambda _name: None)
    assert list(page.labels("request_total")) == []
    assert page.value("handler_deliveries_total", door="pubsub_push", outcome="answered") == 1


@pytest.mark.parametrize("error", [RuntimeError, TimeoutError])
async def test_a_failed_delivery_does_not_stay_in_flight(error: type[Exception]) -> None:
    metrics = Metrics()
    queue, door = metrics.of_queue("sub", "sub", "default"), DoorMetrics(metrics, "dispatch")

    async def forward(_request: Request, _limits: AttemptOptions) -> Outcome:
        raise error

    counted = counted_attempts(counted_calls(forward, lambda _: queue), lambda _: queue, door)
    with pytest.raises(error):
        await counted(REQUEST, NO_OPTIONS)
    page = page_of(metrics)
    assert page.value("inflight_requests", **QUEUE) == 0
    assert page.value("queue_depth", **QUEUE) == 0
    assert page.value("handler_inflight_deliveries", door="dispatch") == 0
