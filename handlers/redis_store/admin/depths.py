"""Numbers of requests in each state, for metrics, status page and demo."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from handlers.redis_store.admin.status_board import LONGEST_SAMPLED, read_part
from handlers.redis_store.connection import Store, executed
from handlers.redis_store.keys import queue_keys

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
