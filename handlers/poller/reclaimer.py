"""Gives back what dead owners held, and settles what too many owners died on."""

from __future__ import annotations

from typing import Final

from handlers.poller.worker import Carrier
from handlers.redis_store.queue.queue import RedisQueue
from handlers.telemetry.logs import Logger
from handlers.telemetry.metrics import QueueMetrics

_BATCH: Final = 1_000


class Reclaimer:
    """One queue's scans; two at once do no harm."""

    def __init__(
        self, queue: RedisQueue, carrier: Carrier, log: Logger, metrics: QueueMetrics, *, max_deaths: int
    ) -> None:
        self._queue = queue
        self._carrier = carrier
        self._log = log
        self._metrics = metrics
        self._max_deaths = max_deaths

    async def tick(self) -> None:
        """One scan; none while what an earlier one buried is not stored."""
        if self._carrier.is_settling_without_slots:
            return
        reclaimed = await self._queue.reclaim(_BATCH, self._max_deaths)
        if reclaimed.returned:
            self._metrics.reclaimed(reclaimed.returned)
            self._log.warning("reclaimed from dead owners", queue=self._queue.name, count=reclaimed.returned)
        if reclaimed.dead:
            self._log.error("owners died too often", queue=self._queue.name, count=len(reclaimed.dead))
            await self._carrier.bury(reclaimed.dead, self._max_deaths)
