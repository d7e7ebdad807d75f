"""Answers what its producer took back: waiting for its turn, for a retry or at a gate, and in flight."""

from __future__ import annotations

from collections.abc import Callable

from handlers.poller.worker import Carrier
from handlers.redis_store.queue.queue import RedisQueue
from handlers.telemetry.logs import Logger


class Canceller:
    """One queue's looks; what was cancelled before it was claimed for a slot comes with that claim itself.

    Whoever stops claims no more: what waits is another poller's to answer.
    """

    def __init__(
        self,
        queue: RedisQueue,
        carrier: Carrier,
        log: Logger,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._queue = queue
        self._carrier = carrier
        self._log = log
        self._is_stopping = is_stopping

    async def tick(self) -> None:
        """One look: what waits is answered without a slot, what is held is given up and answered."""
        waiting = 0
        if not (self._is_stopping() or self._carrier.is_settling_without_slots):
            async for claims in self._queue.recall():
                await self._carrier.answer_expired(claims)
                waiting += len(claims)
        held = self._carrier.cancel(await self._queue.cancelled(self._carrier.held_claims()))
        if waiting or held:
            self._log.info("cancelled", queue=self._queue.name, waiting=waiting, held=held)
