"""Answers what its producer took back: waiting for its turn, for a retry or at a gate, and in flight."""

from __future__ import annotations

from handlers.poller.carrier import Carrier
from handlers.redis_store.queue import RedisQueue
from handlers.telemetry.logs import Logger


class Canceller:
    """One queue's looks; what was cancelled before it was claimed comes with the claim itself."""

    def __init__(self, queue: RedisQueue, carrier: Carrier, log: Logger) -> None:
        self._queue = queue
        self._carrier = carrier
        self._log = log

    async def tick(self) -> None:
        """One look: what waits is brought to the front, what is held is given up and answered."""
        brought = await self._queue.recall()
        cancelled = await self._queue.cancelled(self._carrier.held_claims())
        self._carrier.cancel(cancelled)
        if brought or cancelled:
            self._log.info("cancelled", queue=self._queue.name, waiting=brought, held=len(cancelled))
