"""How much is where: the lengths of a queue's keys, in one round trip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from handlers.redis_store.connection import Store, executed
from handlers.redis_store.keys import queue_keys


@dataclass(frozen=True, slots=True)
class QueueDepths:
    """Requests pending, claimed, waiting for a retry (of all queues that share the set), and dead.

    `first_score` is the lowest pending score (its deadline, Unix seconds), None for an empty queue; `ends` are
    the members that are first and last in line. `due` are the pending requests due by each instant asked for.
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
    """The lengths now; `due_by` are Unix seconds. Raises one of `STORE_FAILURES`."""
    keys = queue_keys(queue, cluster=cluster)
    pipeline = redis.pipeline(transaction=False)
    pipeline.zcard(keys.pending)
    pipeline.hlen(keys.claimed)
    pipeline.zcard(retry_queue_name)
    pipeline.hlen(keys.dead)
    pipeline.zrange(keys.pending, 0, 0, withscores=True)
    pipeline.zrange(keys.pending, -1, -1, withscores=True)
    for at in due_by:
        pipeline.zcount(keys.pending, "-inf", at)
    pending, claimed, retrying, dead, first, last, *due = await executed(redis, pipeline)
    return QueueDepths(
        pending,
        claimed,
        retrying,
        dead,
        float(first[0][1]) if first else None,
        tuple(row[0][0] for row in (first, last) if row),
        tuple(due),
    )


async def queue_member(redis: Store, queue: str, member: bytes, score: float) -> None:
    """Put any bytes into a sorted set, as a foreign producer would."""
    await redis.zadd(queue, {member: score})
