"""The poller: its pools, its loops, and how it stops. Wired by `handlers.app`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Final

from handlers.poller.carrier import Carrier
from handlers.poller.looper import Looper
from handlers.poller.pool import Pool
from handlers.poller.settler import Settler
from handlers.telemetry.logs import Logger

_SETTLE_SECONDS: Final = 0.9
"""How long a stopping poller waits for Redis to take the last settlements; the leases cover the rest."""


class Poller:
    """Runs until `stop`, then drains: claims no more, finishes what it can, hands the rest back."""

    def __init__(
        self,
        pools: Sequence[Pool],
        carriers: Sequence[Carrier],
        settlers: Sequence[Settler],
        loopers: Sequence[Looper],
        log: Logger,
        *,
        grace_seconds: float,
    ) -> None:
        self._pools = pools
        self._carriers = carriers
        self._settlers = settlers
        self._loopers = loopers
        self._log = log
        self._grace_seconds = grace_seconds
        self._stopping = asyncio.Event()

    @property
    def in_flight(self) -> int:
        """Requests that wait for their outcome."""
        return sum(carrier.in_flight for carrier in self._carriers)

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Begin to drain. A second call ends the grace period."""
        if self._stopping.is_set():
            self._hand_back()
        self._stopping.set()
        for pool in self._pools:
            pool.stop()

    async def run(self) -> None:
        """Claim, carry and settle until stopped and drained. Raises what ended a loop that must not end."""
        background = [asyncio.create_task(looper.run()) for looper in self._loopers]
        background += [asyncio.create_task(settler.run()) for settler in self._settlers]
        claiming = [asyncio.create_task(pool.run()) for pool in self._pools]
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait([stopping, *claiming, *background], return_when=asyncio.FIRST_COMPLETED)
            for ended in (task for task in (*background, *claiming) if task.done()):
                await ended
            await asyncio.gather(*claiming)
            await self._drain()
        finally:
            for task in (*background, *claiming, stopping):
                task.cancel()
            await asyncio.gather(*background, *claiming, stopping, return_exceptions=True)

    async def _drain(self) -> None:
        self._log.info("draining", in_flight=self.in_flight, grace_seconds=self._grace_seconds)
        work = [task for carrier in self._carriers for task in carrier.work()]
        if work:
            _, unfinished = await asyncio.wait(work, timeout=self._grace_seconds)
            self._hand_back()
            if unfinished:
                await asyncio.wait(unfinished)
            await asyncio.sleep(0)  # the callbacks of what was cancelled add its releases now
        handed_back = len(unfinished) if work else 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE_SECONDS):
                await asyncio.gather(*(settler.drained() for settler in self._settlers))
        self._log.info("drained", handed_back=handed_back)

    def _hand_back(self) -> None:
        for carrier in self._carriers:
            carrier.hand_back()
