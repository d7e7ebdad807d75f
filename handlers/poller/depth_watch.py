"""Looks at a queue now and then, so that the metrics show how much is where and how late it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from handlers.contract.envelope import decode_member
from handlers.contract.errors import InvalidRequest
from handlers.redis_store.connection import STORE_FAILURES, Store
from handlers.redis_store.queue.depths import queue_depths
from handlers.redis_store.queue.queue import QueueOptions, RedisQueue
from handlers.telemetry.families import DEADLINE_BOUNDS_SECONDS
from handlers.telemetry.metrics import QueueMetrics

DEPTHS_SECONDS: Final = 5.0
"""How often: a dashboard's step is 15 s, and one look is one round trip."""


class DepthWatch:
    """One queue's looks."""

    def __init__(self, redis: Store, queue: RedisQueue, options: QueueOptions, metrics: QueueMetrics) -> None:
        self._redis = redis
        self._queue = queue
        self._options = options
        self._metrics = metrics

    async def tick(self) -> None:
        """One look; a server that does not answer leaves the last numbers, marked as old."""
        now = self._queue.now()
        try:
            found = await queue_depths(
                self._redis,
                self._queue.name,
                self._options.retry_queue_name,
                cluster=self._options.cluster,
                due_by=[now + bound for bound in DEADLINE_BOUNDS_SECONDS],
            )
        except STORE_FAILURES:
            self._metrics.depth_unknown()
            raise
        self._metrics.deadlines(found.due, found.pending)
        self._metrics.depth(
            found.pending,
            found.claimed,
            found.retrying,
            found.dead,
            0.0 if found.first_score is None else found.first_score - now,
            oldest_age_seconds=oldest_age_seconds(found.ends, self._queue.name, now),
        )


def oldest_age_seconds(members: Sequence[bytes], queue: str, now: float) -> float:
    """How long the oldest of these has been there by its own `created`; 0 where none says.

    The ends of the line stand for all: the first shows a queue that is stuck, the last one that is starved.
    Reading every member would cost the server more than the answer is worth.
    """
    ages = [0.0]
    for member in members:
        try:
            created = decode_member(member, queue).request.created
        except InvalidRequest:
            continue
        if created is not None:
            ages.append(now - created)
    return max(ages)
