"""Keys left in Redis by a test are in the table of `handlers.redis_store.keys`, or expire."""

from __future__ import annotations

from collections.abc import Sequence

from redis.asyncio import Redis

from handlers.redis_store.keys import queue_keys


async def leaked_keys(
    store: Redis, queues: Sequence[str], lists: Sequence[str], retry_queue_name: str = "retry-sortedset"
) -> list[str]:
    """Keys, with their types, that must not exist once every request has its result.

    Result lists (their readers empty them), dead letters and expiring keys may stay.
    """
    may_stay = {retry_queue_name, *lists, *(queue_keys(queue).dead for queue in queues)}
    leaked = []
    async for key in store.scan_iter(count=1_000):
        name = key.decode("utf-8", "backslashreplace")
        if name not in may_stay and await store.ttl(key) < 0:
            leaked.append(f"{name} ({await store.type(key)!r})")
    return sorted(leaked)


async def claims_left(store: Redis, queue: str) -> dict[str, int]:
    """The sizes of the keys of claims that are not empty; `{}` without claims."""
    keys = queue_keys(queue)
    sizes = {
        keys.claimed: await store.hlen(keys.claimed),
        keys.owners: await store.hlen(keys.owners),
        keys.index: await store.zcard(keys.index),
    }
    return {name: size for name, size in sizes.items() if size}


async def end_leases(store: Redis, index: str) -> None:
    """Set the end of every lease in the sorted set `index` to the past."""
    members: list[bytes] = await store.zrange(index, 0, -1)  # type: ignore[assignment]  # without scores
    for member in members:
        await store.zadd(index, {member: 1}, xx=True)
