"""Which queues have requests, and how many in each state."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final

import msgspec
from redis.asyncio.cluster import RedisCluster
from redis.exceptions import NoPermissionError

from handlers.cancellation import end_if_cancelled
from handlers.redis_store.admin.status_board import LONGEST_SAMPLED, read_part
from handlers.redis_store.connection import Store, executed
from handlers.redis_store.keys import queue_keys
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


_QUEUES_AT_ONCE: Final = 500
_SCORES_AT_ONCE: Final = 16


class QueueDepths(msgspec.Struct, frozen=True):
    """Numbers of requests of a queue, by state.

    `retrying` counts all queues that share the retry set. `first_score` is the lowest pending score (a deadline in Unix
    seconds), None for an empty queue. `ends` are the pending members with the lowest and the highest score, without
    those over `LONGEST_SAMPLED` bytes. `due` has, for each time in `due_by`, the number of pending requests due by
    then.
    """

    pending: int
    claimed: int
    retrying: int
    dead: int
    first_score: float | None = None
    ends: tuple[bytes, ...] = ()
    due: tuple[int, ...] = ()


async def queue_depths(
    redis: Store, queue: str, retry_queue_name: str, *, cluster: bool = False, due_by: Sequence[float] = ()
) -> QueueDepths:
    """The depths of one queue; `due_by` are Unix seconds. Raises one of `STORE_FAILURES`."""
    keys = queue_keys(queue, cluster=cluster)
    pipeline = redis.pipeline(transaction=False)
    pipeline.zcard(keys.pending)
    pipeline.hlen(keys.claimed)
    pipeline.zcard(retry_queue_name)
    pipeline.hlen(keys.dead)
    for at in due_by:
        pipeline.zcount(keys.pending, "-inf", at)
    pending, claimed, retrying, dead, *due = await executed(redis, pipeline)
    first_score: float | None = None
    ends: list[bytes] = []
    for rank in ("0", "-1") if pending else ():
        for member, score, _ in await _member_at(redis, keys.pending, rank, LONGEST_SAMPLED):
            first_score = float(score) if rank == "0" else first_score  # type: ignore[misc]  # Redis wrote it
            ends += [member] if member else []
    return QueueDepths(pending, claimed, retrying, dead, first_score, tuple(ends), tuple(due))


async def all_depths(
    redis: Store, queues: Sequence[str], retry_queue_name: str, *, cluster: bool = False
) -> Mapping[str, QueueDepths]:
    """The depths of many queues, without `ends` and `due`. Raises one of `STORE_FAILURES`."""
    retrying = int(await redis.zcard(retry_queue_name))
    lengths: dict[str, list[int]] = {}
    for start in range(0, len(queues), _QUEUES_AT_ONCE):
        some = queues[start : start + _QUEUES_AT_ONCE]
        pipeline = redis.pipeline(transaction=False)
        for keys in (queue_keys(name, cluster=cluster) for name in some):
            pipeline.zcard(keys.pending)
            pipeline.hlen(keys.claimed)
            pipeline.hlen(keys.dead)
        answers = await executed(redis, pipeline)
        lengths |= {name: answers[3 * at : 3 * at + 3] for at, name in enumerate(some)}
    filled = [name for name, (pending, _, _) in lengths.items() if pending]
    scores: dict[str, float] = {}
    for start in range(0, len(filled), _SCORES_AT_ONCE):
        some = filled[start : start + _SCORES_AT_ONCE]
        firsts = await asyncio.gather(*(_member_at(redis, name, "0", 0) for name in some))
        rows = zip(some, firsts, strict=True)
        scores |= {name: float(row[0][1]) for name, row in rows if row}  # type: ignore[misc]  # Redis wrote it
    return {
        name: QueueDepths(pending, claimed, retrying, dead, scores.get(name))
        for name, (pending, claimed, dead) in lengths.items()
    }


async def _member_at(redis: Store, key: str, rank: str, longest: int) -> Sequence[tuple[bytes, bytes, int]]:
    return (await read_part(redis, "ZRANGE", key, rank, entries=1, longest=longest)).rows


async def queue_member(redis: Store, queue: str, member: bytes, score: float) -> None:
    """Put any bytes into a sorted set, as a foreign producer would."""
    await redis.zadd(queue, {member: score})
