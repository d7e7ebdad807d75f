"""Pollers share a pool in Redis: each has an index, crashed ones lose theirs, no keys remain. Quotas are exact."""

from __future__ import annotations

import pytest

from handlers.redis_store.limits.limits import PoolIndex, RedisGateStore, RedisPoolSharing
from tests.redis_keys import leaked_keys
from tests.redis_store.queue.queueing import Bench


def poller(bench: Bench, name: str, pool: str = "p") -> RedisPoolSharing:
    return RedisPoolSharing(bench.redis, pool, name, lease_seconds=1_800)


async def test_each_poller_gets_its_index_and_the_slots_of_others(bench: Bench) -> None:
    a, b, c = (poller(bench, name) for name in "abc")
    assert await a.share(5) == PoolIndex(0, 1, 0)
    assert await c.share(2) == PoolIndex(1, 2, 5)
    assert await b.share(0) == PoolIndex(1, 3, 7)
    assert await c.share(3) == PoolIndex(2, 3, 5)
    assert await c.share(3) == PoolIndex(2, 3, 5), "a call that is sent twice counts once"
    assert await poller(bench, "x", pool="other").share(1) == PoolIndex(0, 1, 0)
    assert await leaked_keys(bench.redis, [], []) == []


async def test_pollers_that_leave_or_die_free_their_slots(bench: Bench) -> None:
    a, b, c = (poller(bench, name) for name in "abc")
    for one in (a, b, c):
        await one.share(4)
    await a.leave()
    await a.leave()
    await bench.redis.zadd("{async-processor:pool:p}:pollers", {"b": 1}, xx=True)  # its lease has ended
    assert await c.share(4) == PoolIndex(0, 1, 0)


async def test_ended_units_of_a_quota_never_count_and_are_removed_in_portions(bench: Bench) -> None:
    """However many end at once, no call takes long."""
    store, key, ended = RedisGateStore(bench.redis), "quota:userid:a", 2_500
    await bench.redis.zadd(key, {f"ended-{number}": 1 + number for number in range(ended)})
    await bench.redis.zadd("{quota:userid:a}:paid", {f"ended-{number}": 1 + number for number in range(ended)})

    async def pay(name: str) -> tuple[bool, bool, float]:
        return await store.pay_rate(key, name, limit=2, window_seconds=600, remember_seconds=600)

    assert await pay("ended-2499") == (True, True, 0), "it is forgotten, though its record remains"
    assert await bench.redis.zcard(key) == 1_499
    assert await pay("b") == (True, True, 0)
    assert await pay("b") == (True, False, 0)
    is_admitted, _, wait_seconds = await pay("c")
    assert not is_admitted
    assert wait_seconds == pytest.approx(600, abs=60)
    assert await bench.redis.zcard(key) == 2
