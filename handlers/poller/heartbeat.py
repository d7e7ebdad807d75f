"""Renews the leases of what is held, on the event loop of the work itself: a stalled one cannot fake it."""

from __future__ import annotations

import time
from collections.abc import Callable

from handlers.poller.worker import Carrier
from handlers.redis_store.connection import STORE_FAILURES
from handlers.redis_store.queue.queue import RedisQueue
from handlers.telemetry.metrics import QueueMetrics


class Heartbeat:
    """One queue's renewals. `monotonic` gives seconds that no clock change moves."""

    def __init__(
        self,
        queue: RedisQueue,
        carrier: Carrier,
        lease_seconds: float,
        metrics: QueueMetrics,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queue = queue
        self._carrier = carrier
        self._lease_seconds = lease_seconds
        self._metrics = metrics
        self._monotonic = monotonic
        self._renewed_at = monotonic()

    async def tick(self) -> None:
        """Renew all; what is no longer ours, or could not be renewed for a whole lease, is given up."""
        started_at = self._monotonic()
        claims = self._carrier.held_claims()
        try:
            lost = await self._queue.renew(claims) if claims else []
        except STORE_FAILURES:
            if self._monotonic() - self._renewed_at > self._lease_seconds:
                self._carrier.lose(claims)
            raise
        self._renewed_at = started_at
        self._metrics.renewed(len(claims) - len(lost), 0)
        self._carrier.lose(lost)
