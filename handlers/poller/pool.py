"""A pool of slots that queues share: claims as many as there are free slots, in one round trip a queue."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from handlers.poller.carrier import Carrier
from handlers.poller.patience import Patience
from handlers.redis_store.connection import STORE_FAILURES
from handlers.redis_store.queue import RedisQueue
from handlers.telemetry.logs import Logger

_COALESCE_SECONDS: Final = 0.001
"""How long freed slots are collected before the next claim: one round trip for several of them."""
_EXPIRE_SECONDS: Final = 1.0
"""How often a pool without room looks for requests whose deadline has passed."""


@dataclass(frozen=True, slots=True)
class Source:
    """A queue and who carries its claims."""

    queue: RedisQueue
    carrier: Carrier


class Pool:
    """Claims for its sources while it has room; `stop` ends the claiming, not the work."""

    def __init__(self, pool_id: str, slots: int, poll_interval_seconds: float, log: Logger) -> None:
        self.pool_id = pool_id
        self.slots = slots
        self.sources: list[Source] = []
        self._poll_interval_seconds = poll_interval_seconds
        self._log = log
        self._patience = Patience()
        self._freed = asyncio.Event()
        self._stopped = asyncio.Event()
        self._turn = 0

    @property
    def in_flight(self) -> int:
        """Requests that hold a slot."""
        return sum(source.carrier.in_flight for source in self.sources)

    @property
    def is_waiting_for_store(self) -> bool:
        """Whether the last claim got no answer."""
        return self._patience.is_tried

    def free(self) -> None:
        """A slot became free."""
        self._freed.set()

    def stop(self) -> None:
        """Claim no more."""
        self._stopped.set()
        self._freed.set()

    async def run(self) -> None:
        """Claim until stopped."""
        while not self._stopped.is_set():
            try:
                await self._tick()
            except STORE_FAILURES as error:
                if not self._patience.is_tried:
                    self._log.warning(
                        "claiming waits for redis", pool=self.pool_id, error=type(error).__name__
                    )
                await self._rest(self._patience.next_seconds())
            else:
                self._patience.reset()

    async def _tick(self) -> None:
        room = self.slots - self.in_flight
        if room < 1:
            if not await self._has_freed(_EXPIRE_SECONDS):
                await self._claim(self.slots, only_expired=True)
            return
        taken = await self._claim(room)
        if taken == 0:
            await self._rest(self._poll_interval_seconds)
        else:
            await asyncio.sleep(_COALESCE_SECONDS)

    async def _claim(self, room: int, *, only_expired: bool = False) -> int:
        """Claim up to `room` requests, each queue's turn to be first coming round."""
        taken = 0
        for source in self._in_turn():
            if self._stopped.is_set() or taken >= room:
                break
            claims = await source.queue.claim(room - taken, only_expired=only_expired)
            source.carrier.start(claims)
            taken += len(claims)
        return taken

    def _in_turn(self) -> Sequence[Source]:
        self._turn = (self._turn + 1) % len(self.sources)
        return self.sources[self._turn :] + self.sources[: self._turn]

    async def _has_freed(self, timeout_seconds: float) -> bool:
        self._freed.clear()
        if self.in_flight < self.slots:
            return True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._freed.wait()
                return True
        return False

    async def _rest(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopped.wait()
