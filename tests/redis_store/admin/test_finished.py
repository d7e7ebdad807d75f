"""Records of finished requests: bounded in number, bytes and age, one for an id, never without an expiry."""

from __future__ import annotations

import time

from redis.asyncio import Redis

from handlers.redis_store.admin.status_board import (
    FINISHED,
    FinishedLimits,
    FinishedRecord,
    FinishedRecords,
    read_finished,
)
from tests.redis_keys import leaked_keys
from tests.redis_store.queue.queueing import Bench

ROOMY = FinishedLimits(records=1_000, bytes=1_000_000, seconds=3_600)


def record(outcome: str = "HTTP 200", token: str = "t") -> FinishedRecord:
    return FinishedRecord(token, outcome, time.time(), "requests", "results")


async def stored_bytes(redis: Redis) -> int:
    return sum(len(name) + len(text) for name, text in (await redis.hgetall(FINISHED)).items())


async def test_a_record_is_read_as_it_was_written_and_the_latest_of_an_id_counts(bench: Bench) -> None:
    records = FinishedRecords(bench.redis, ROOMY)
    await records.write([("a", record("HTTP 500", "first")), ("b", record())])
    assert await records.write([("a", record("CANCELLED", "second"))]) == 2
    found = await read_finished(bench.redis, "a")
    assert found is not None
    assert (found.outcome, found.token, found.results) == ("CANCELLED", "second", "results")
    assert await read_finished(bench.redis, "never") is None


async def test_the_oldest_records_beyond_the_number_are_dropped(bench: Bench) -> None:
    records = FinishedRecords(bench.redis, FinishedLimits(3, 1_000_000, 3_600))
    for number in range(10):
        await records.write([(f"id-{number}", record())])
    assert await bench.redis.hlen(FINISHED) == await bench.redis.zcard(f"{FINISHED}-idx") == 3


async def test_after_the_limit_is_lowered_records_are_dropped_in_portions(bench: Bench) -> None:
    roomy, few = (FinishedRecords(bench.redis, FinishedLimits(most, 10_000_000, 3_600)) for most in (5_000, 10))
    await roomy.write([(f"id-{number}", record()) for number in range(3_000)])
    assert [await few.write([("new", record())]) for _ in range(2)] == [1_001, 10]


async def test_records_stay_within_their_bytes_when_they_are_replaced(bench: Bench) -> None:
    records = FinishedRecords(bench.redis, FinishedLimits(1_000, 2_000, 3_600))
    for number in range(60):
        await records.write([(f"id-{number % 45}" + "x" * number, record("E" * (number % 7)))])
        assert await stored_bytes(bench.redis) <= 2_000
        assert int(await bench.redis.get(f"{FINISHED}-bytes") or 0) == await stored_bytes(bench.redis)
    assert await bench.redis.hlen(FINISHED) > 0


async def test_records_beyond_their_age_are_dropped_at_the_next_write(bench: Bench) -> None:
    records = FinishedRecords(bench.redis, ROOMY)
    await records.write([("old", record())])
    await bench.redis.zadd(f"{FINISHED}-idx", {"old": time.time() - 7_200})
    assert await records.write([("new", record())]) == 1
    assert await read_finished(bench.redis, "old") is None
    assert int(await bench.redis.get(f"{FINISHED}-bytes") or 0) == await stored_bytes(bench.redis)


async def test_every_key_of_the_records_expires(bench: Bench) -> None:
    await FinishedRecords(bench.redis, ROOMY).write([("a", record())])
    assert await leaked_keys(bench.redis, [], []) == []
    assert 0 < await bench.redis.ttl(FINISHED) <= ROOMY.seconds
