"""What pollers leave for those who look: gates, counts of the last hour, the latest failures. Bounded, and it expires.

{async-processor}:status:pollers       hash    poller -> snapshot (JSON); one that is old counts for nothing
{async-processor}:status:minute:<n>    hash    "<queue> <what>" -> count, n = Unix minutes; expires after two hours
{async-processor}:status:failures      list    the latest failures (JSON), newest first; at most 200, a day long
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from handlers.redis_store.connection import Store, executed
from handlers.redis_store.keys import queue_keys

_PREFIX: Final = "{async-processor}:status:"
POLLERS: Final = f"{_PREFIX}pollers"
FAILURES: Final = f"{_PREFIX}failures"
MOST_FAILURES: Final = 200
MINUTES: Final = 60
SAMPLE: Final = 500
"""How many of a queue's first members are looked at to tell tenants apart."""
_MINUTE_SECONDS: Final = 7_200
_DAY_SECONDS: Final = 86_400
_SCAN_COUNT: Final = 500
_MOST_SCANNED: Final = 100_000


def minute_key(minute: int) -> str:
    """HASH: the counts of one Unix minute, of all pollers together."""
    return f"{_PREFIX}minute:{minute}"


class StatusBoard:
    """A poller's side. Every method raises one of `STORE_FAILURES` without Redis."""

    def __init__(self, redis: Store, poller: str) -> None:
        self._redis = redis
        self._poller = poller

    async def post(
        self, snapshot: bytes, minute: int, counts: Mapping[str, int], failures: Sequence[bytes]
    ) -> None:
        """Leave a snapshot, add to the minute's counts, and put the newest failures in front."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.hset(POLLERS, self._poller, snapshot)
        pipeline.expire(POLLERS, _DAY_SECONDS)
        for name, count in counts.items():
            pipeline.hincrby(minute_key(minute), name, count)
        if counts:
            pipeline.expire(minute_key(minute), _MINUTE_SECONDS)
        if failures:
            pipeline.lpush(FAILURES, *failures)
            pipeline.ltrim(FAILURES, 0, MOST_FAILURES - 1)
            pipeline.expire(FAILURES, _DAY_SECONDS)
        await executed(self._redis, pipeline)

    async def leave(self, others: Sequence[str] = ()) -> None:
        """Take this poller's snapshot away, and those of `others` that have long been silent."""
        await self._redis.hdel(POLLERS, self._poller, *others)


@dataclass(frozen=True, slots=True)
class Board:
    """What pollers left: snapshots by poller, counts by minute (oldest first), failures (newest first)."""

    pollers: Mapping[str, bytes]
    minutes: Sequence[Mapping[str, int]]
    failures: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Found:
    """A member that may be the one that is looked for, and where it is: pending, claimed, retry or dead.

    `score` is a deadline (pending) or a due time (retry), Unix seconds; 0 where there is none. `dead_id` names a
    dead letter.
    """

    where: str
    member: bytes
    score: float = 0.0
    dead_id: str = ""


@dataclass(frozen=True, slots=True)
class Search:
    """What a search saw; `is_partial` where a key was too large to look at all of it."""

    found: list[Found] = field(default_factory=list)
    is_partial: bool = False


async def read_board(redis: Store, minute: int) -> Board:
    """The board with the last hour up to `minute`, in one round trip."""
    pipeline = redis.pipeline(transaction=False)
    pipeline.hgetall(POLLERS)
    pipeline.lrange(FAILURES, 0, MOST_FAILURES - 1)
    for one in range(minute - MINUTES + 1, minute + 1):
        pipeline.hgetall(minute_key(one))
    pollers, failures, *minutes = await executed(redis, pipeline)
    return Board(
        {name.decode("utf-8", "replace"): text for name, text in pollers.items()},
        [
            {name.decode("utf-8", "replace"): int(count) for name, count in counts.items()}
            for counts in minutes
        ],
        failures,
    )


@dataclass(frozen=True, slots=True)
class Sample:
    """Members of one queue, the first `SAMPLE` in line; of the retry set, which queues share, those of all queues."""

    pending: Sequence[bytes]
    claimed: Sequence[bytes]
    retrying: Sequence[bytes]


async def sample_members(redis: Store, queue: str, retry_queue_name: str, *, cluster: bool) -> Sample:
    """Some members of each state, in one round trip."""
    keys = queue_keys(queue, cluster=cluster)
    pipeline = redis.pipeline(transaction=False)
    pipeline.zrange(keys.pending, 0, SAMPLE - 1)
    pipeline.hscan(keys.claimed, 0, count=SAMPLE)
    pipeline.zrange(retry_queue_name, 0, SAMPLE - 1)
    pending, (_, claimed), retrying = await executed(redis, pipeline)
    return Sample(pending, list(claimed.values())[:SAMPLE], retrying)


async def search(
    redis: Store, queue: str, retry_queue_name: str, request_id: str, *, cluster: bool
) -> Search:
    """Members that hold this id, wherever they are; looks at so many members of each key at most.

    The scans are in parts and give way to others, so they may take a while on a deep queue.
    """
    keys = queue_keys(queue, cluster=cluster)
    needle = request_id.encode()
    result = Search()
    pattern = f"*{_escaped(request_id)}*"
    partial = False
    for where, key in (("pending", keys.pending), ("retry", retry_queue_name)):
        seen = 0
        async for member, score in redis.zscan_iter(key, match=pattern, count=_SCAN_COUNT):
            seen += 1
            if needle in member and len(result.found) < MOST_FAILURES:
                result.found.append(Found(where, member, float(score)))
        partial = partial or seen >= _MOST_SCANNED
        await asyncio.sleep(0)
    for where, key in (("claimed", keys.claimed), ("dead", keys.dead)):
        async for name, value in redis.hscan_iter(key, count=_SCAN_COUNT):
            if needle in name or needle in value:
                dead_id = name.decode() if where == "dead" else ""
                result.found.append(Found(where, value, dead_id=dead_id))
    return Search(result.found, partial)


def _escaped(text: str) -> str:
    """The text as a glob that means itself."""
    return "".join(f"\\{char}" if char in r"*?[]\^-" else char for char in text)
