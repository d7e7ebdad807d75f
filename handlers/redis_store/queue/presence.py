"""Find queues that have requests: one command for all, and producers' signals."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Final

from redis.asyncio.cluster import RedisCluster
from redis.exceptions import NoPermissionError

from handlers.cancellation import end_if_cancelled
from handlers.redis_store.connection import Store, executed
from handlers.redis_store.scripts import naming_key

WAKE_CHANNEL: Final = "{async-processor}:wake"
"""Channel on which `submit.lua` publishes the name of the queue that has new requests."""
_GROUP: Final = 100


async def existing(redis: Store, keys: Sequence[str]) -> set[str]:
    """Which of `keys` exist. Raises one of `STORE_FAILURES`.

    Costs one command if none or all exist. In Redis Cluster, one `EXISTS` per key in one pipeline.
    """
    try:
        return await _existing(redis, keys)
    except NoPermissionError as error:
        raise await naming_key(redis, keys, error) from error


async def _existing(redis: Store, keys: Sequence[str]) -> set[str]:
    if not keys:
        return set()
    if isinstance(redis, RedisCluster):
        return set(await _of_groups(redis, [[key] for key in keys]))
    count = int(await redis.exists(*keys))
    if count in (0, len(keys)):
        return set(keys) if count else set()
    if len(keys) > _GROUP:
        keys = await _of_groups(redis, [keys[at : at + _GROUP] for at in range(0, len(keys), _GROUP)])
    return set(await _of_groups(redis, [[key] for key in keys]))


async def _of_groups(redis: Store, groups: Sequence[Sequence[str]]) -> list[str]:
    """The keys of the groups in which at least one key exists."""
    pipeline = redis.pipeline(transaction=False)
    for group in groups:
        pipeline.exists(*group)
    counts = await executed(redis, pipeline)
    return [key for group, count in zip(groups, counts, strict=True) if count for key in group]


async def wake_signals(redis: Store) -> AsyncIterator[str]:
    """Yield names of queues to which clients submit, until cancelled.

    Holds one connection. Raises one of `STORE_FAILURES`, also if the ACL refuses to subscribe. Yields nothing in Redis
    Cluster.
    """
    if isinstance(redis, RedisCluster):
        return
    async with redis.pubsub() as subscription:
        await subscription.subscribe(WAKE_CHANNEL)
        while True:
            message = await subscription.get_message(ignore_subscribe_messages=True, timeout=None)
            end_if_cancelled()
            if message is not None:
                yield message["data"].decode("utf-8", "replace")
