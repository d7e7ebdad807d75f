"""Pollers share a pool in Redis: each has an index, crashed ones lose theirs, no keys remain."""

from __future__ import annotations

from handlers.redis_store.limits.limits import PoolIndex, RedisPoolSharing
from tests.redis_keys import leaked_keys
from tests.redis_store.queue.queueing import Bench


def poller(bench: Bench, name: str, pool: str = "p") -> RedisPoolSharing:
    return RedisPoolSharing(bench.redis, pool, name, lease_seconds=30)


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
