"""A poller's counts of its requests, from its metrics page."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import msgspec
import pytest
from redis.asyncio import Redis

from handlers.contract.request import Request
from handlers.contract.result import answered_result
from handlers.forward.outcome import Answered, Outcome, Retry
from handlers.poller.maintenance import DepthWatch
from handlers.redis_store.connection import STORE_FAILURES, RedisOptions, connect
from handlers.redis_store.keys import queue_keys
from handlers.redis_store.queue.queue import QueueOptions
from handlers.status.collect import Tally
from handlers.status.report import Failure
from tests.poller.rig import IN_TIME, QUEUE, RESULTS, RETRIES, Rig, body, running
from tests.poller.tables import table_of
from tests.redis_keys import end_leases
from tests.telemetry.exposition import page_of
from tests.waiting import wait_until_async

LABELS = {"queue_id": QUEUE, "queue_name": QUEUE, "pool_name": "default"}
FINALS = ("successful_requests_total", "failed_requests_total", "exceeded_deadline_requests_total")


async def carry(rig: Rig, *members: bytes) -> None:
    claims = await rig.claimed(*members)
    async with running(rig.ack_batcher.run()):
        rig.start(claims)
        await wait_until_async(lambda: rig.worker.in_flight == 0, "all outcomes")
        await asyncio.wait_for(rig.ack_batcher.drained(), IN_TIME)


def value(rig: Rig, name: str, **more: str) -> float | None:
    return page_of(rig.process_metrics).value(name, **LABELS, **more)


async def test_an_answer_counts_its_attempt_its_time_its_tokens_and_its_record(store: Redis) -> None:
    async def answer(request: Request) -> Outcome:
        usage = b'{"usage": {"prompt_tokens": 3, "completion_tokens": 5}}'
        return Answered(answered_result(request.id, "", 200, usage))

    rig = Rig(store, answer)
    await carry(rig, body("a", created=time.time() - 5))
    ones = (
        *("request_total", "dispatched_requests_total", "successful_requests_total"),
        *("inference_latency_time_millis_count", "queue_residence_time_millis_count"),
        *("message_latency_time_millis_count", "deadline_left_millis_count"),
        *("attempts_per_request_count", "result_publish_time_millis_count"),
    )
    assert {name: value(rig, name) for name in ones} == dict.fromkeys(ones, 1)
    assert (value(rig, "message_latency_time_millis_sum") or 0) >= 5_000
    assert value(rig, "tokens_total", direction="input") == 3
    assert value(rig, "tokens_total", direction="output") == 5
    assert value(rig, "inflight_requests") == 0


@pytest.mark.parametrize(
    ("member", "final"),
    [
        (body("a", payload=[]), "failed_requests_total"),
        (body("a", deadline=1), "exceeded_deadline_requests_total"),
    ],
    ids=["invalid", "late"],
)
async def test_a_request_that_is_not_sent_is_final_once_without_a_call(store: Redis, member: bytes, final: str) -> None:
    rig = Rig(store)
    await carry(rig, member)
    assert {name for name in FINALS if value(rig, name)} == {final}
    assert value(rig, "dispatched_requests_total") == 0


async def test_a_retry_that_does_not_fit_before_the_deadline_is_a_final_result(store: Redis) -> None:
    async def busy(_request: Request) -> Outcome:
        return Retry(7_200.0, "rejected")

    rig = Rig(store, busy)
    await carry(rig, body("a"))
    assert value(rig, "exceeded_deadline_requests_total") == 1
    assert value(rig, "request_retries_total") == 0
    assert len(await rig.results()) == 1


async def test_dead_letters_count_when_they_are_recorded(store: Redis) -> None:
    rig = Rig(store)
    await carry(rig, b"no request at all")
    assert value(rig, "dead_letters_total") == 1


async def test_requests_without_an_attempt_reach_the_status_page(store: Redis) -> None:
    rig = Rig(store)
    await carry(rig, body("invalid", payload=[]), b"unreadable")
    claims = await rig.claimed(body("died"), body("never-read"))
    async with running(rig.ack_batcher.run()):
        await rig.worker.dead_letter([msgspec.structs.replace(claims[0], delivery_count=5)], 5)
        await rig.worker.dead_letter([msgspec.structs.replace(claims[1], delivery_count=9)], 5)
        await asyncio.wait_for(rig.ack_batcher.drained(), IN_TIME)
    tally = Tally()
    for request, outcome in rig.outcomes:
        tally.note(request, outcome)
    counts, failures = tally.take()
    decoded = [msgspec.json.decode(failure, type=Failure) for failure in failures]
    assert counts == {"failed": 4}
    assert sorted((one.id, one.reason, one.queue) for one in decoded) == [
        ("", "INVALID_REQUEST", QUEUE),
        ("died", "UNDELIVERABLE", QUEUE),
        ("invalid", "INVALID_REQUEST", QUEUE),
        ("never-read", "UNDELIVERABLE", QUEUE),
    ]


async def test_a_late_settlement_counts_as_a_lost_lease(store: Redis) -> None:
    rig = Rig(store)
    claims = await rig.claimed(body("a"))
    await end_leases(store, queue_keys(QUEUE).index)
    assert (await Rig(store).queue.reclaim(10, 5)).returned == 1
    async with running(rig.ack_batcher.run()):
        rig.start(claims)
        await wait_until_async(lambda: rig.worker.in_flight == 0, "the outcome")
        await asyncio.wait_for(rig.ack_batcher.drained(), IN_TIME)
    assert value(rig, "lease_losses_total") == 1
    assert value(rig, "result_publish_time_millis_count") == 0


async def test_depths_are_counted_by_time_left_and_include_the_oldest(store: Redis) -> None:
    rig = Rig(store)
    now = time.time()
    await rig.submit(body("late", created=now - 600), score=now - 10)
    await rig.submit(body("soon", created=now - 5), score=now + 55)
    await rig.submit(body("later", created=now - 900), score=now + 3_000)
    await DepthWatch(store, table_of(rig), QueueOptions(RETRIES, RESULTS)).tick()
    assert value(rig, "broker_backlog", model_name="") == 3
    assert value(rig, "broker_backlog_source_available") == 1
    assert value(rig, "oldest_pending_age_seconds") == pytest.approx(900, abs=60)
    due = [value(rig, "deadline_proximity_millis_bucket", le=le) for le in ("0.0", "60000.0", "3.6e+06")]
    assert due == [1, 2, 3]


async def test_a_failed_measurement_is_marked_and_keeps_the_last_values(store: Redis, tmp_path: Path) -> None:
    rig = Rig(store)
    await rig.submit(body("a"))
    options = QueueOptions(RETRIES, RESULTS)
    await DepthWatch(store, table_of(rig), options).tick()
    gone = connect(RedisOptions(f"unix://{tmp_path}/nobody"))
    with pytest.raises(STORE_FAILURES):
        await DepthWatch(gone, table_of(rig), options).tick()
    assert value(rig, "broker_backlog_source_available") == 0
    assert value(rig, "broker_backlog", model_name="") == 1
