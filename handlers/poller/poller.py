"""Run the parts of a poller, and drain them at the end.

Claimers, periodic tasks and ack batchers can be added and removed while it runs.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final, Protocol

from handlers.poller.ack_batcher import AckBatcher, Settlement
from handlers.poller.claimer import Claimer
from handlers.poller.worker import Worker
from handlers.telemetry.logs import Logger

_SETTLE_SECONDS: Final = 0.9
"""Longest wait of a stopping poller for the last settlements. Unsettled claims return when their leases expire."""
_FIRST_CLAIM_SECONDS: Final = 0.5
"""Longest wait for the first claims before the other parts start."""


class Runs(Protocol):
    """A part that runs until it is cancelled.

    If Redis refuses its calls, `refusal` is the reason; otherwise it is empty.
    """

    @property
    def refusal(self) -> str: ...

    async def run(self) -> None: ...


class Poller:
    """Runs its parts until `stop`, then drains.

    While it drains, it claims nothing, finishes requests within `grace_seconds`, and releases the other claims.
    """

    def __init__(self, log: Logger, *, grace_seconds: float) -> None:
        self._claimers: list[Claimer] = []
        self._queues: dict[Worker, AckBatcher] = {}
        self._parts: list[Runs] = []
        self._running: dict[Runs, asyncio.Task[None]] = {}
        self._has_ended = asyncio.Event()
        self._is_running = False
        self._log = log
        self._grace_seconds = grace_seconds
        self._stopping = asyncio.Event()

    def add_claimer(self, claimer: Claimer) -> None:
        """Add the claimer of a pool, also while running."""
        if self.is_stopping:
            claimer.stop()
        self._claimers.append(claimer)
        self.add(claimer)

    async def remove_claimer(self, claimer: Claimer) -> None:
        """Remove the claimer of a pool. Its requests in flight continue."""
        self._claimers.remove(claimer)
        self._parts.remove(claimer)
        claimer.stop()
        if claimer in self._running:
            await asyncio.gather(self._running.pop(claimer), return_exceptions=True)

    def add_queue(self, worker: Worker, ack_batcher: AckBatcher) -> None:
        """Add a queue, also while running."""
        self._queues[worker] = ack_batcher
        self.add(ack_batcher)

    async def remove_queue(self, worker: Worker) -> None:
        """Remove a queue, which must be idle."""
        await self.remove(self._queues.pop(worker))

    def add(self, part: Runs) -> None:
        """Start a part, also while running."""
        self._parts.append(part)
        if self._is_running:
            self._begin(part)

    async def remove(self, part: Runs) -> None:
        """Cancel a part."""
        self._parts.remove(part)
        if part in self._running:
            task = self._running.pop(part)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _begin(self, part: Runs) -> None:
        task = asyncio.create_task(part.run())
        self._running[part] = task
        task.add_done_callback(self._note_end)

    def _note_end(self, task: asyncio.Task[None]) -> None:
        if task in self._running.values():
            self._has_ended.set()

    @property
    def in_flight(self) -> int:
        """Number of requests without an outcome."""
        return sum(worker.in_flight for worker in self._queues)

    @property
    def refusal(self) -> str:
        """Why Redis refuses a part's calls, with a fix; else empty."""
        return next((part.refusal for part in self._parts if part.refusal), "")

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    @property
    def ack_batchers(self) -> list[AckBatcher]:
        return list(self._queues.values())

    def stop(self) -> None:
        """Begin to drain. A second call ends the grace period at once."""
        if self._stopping.is_set():
            self._hand_back()
        self._stopping.set()
        for claimer in self._claimers:
            claimer.stop()

    async def run(self) -> None:
        """Run all parts until stopped and drained. Raises the error of a part that ended by itself."""
        self._is_running = True
        for part in sorted(self._parts, key=lambda part: part not in self._claimers):  # claimers first
            self._begin(part)
        waiting = [asyncio.create_task(event.wait()) for event in (self._stopping, self._has_ended)]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for ended in [task for task in self._running.values() if task.done()]:
                await ended
            await asyncio.gather(*(self._running[claimer] for claimer in self._claimers))
            await self._drain()
        finally:
            tasks = [*self._running.values(), *waiting]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def first_claims(self) -> None:
        """Wait until every pool has tried to claim, at most 0.5 s."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_CLAIM_SECONDS):
                await asyncio.gather(*(claimer.has_tried.wait() for claimer in self._claimers))

    async def _drain(self) -> None:
        self._log.info("draining", in_flight=self.in_flight, grace_seconds=self._grace_seconds)
        # A gate may stay closed for hours, so requests that wait at it are returned for other pollers.
        handed_back = sum(worker.hand_back_unsent() for worker in self._queues)
        work = self.work()
        if work:
            _, unfinished = await asyncio.wait(work, timeout=self._grace_seconds)
            self._hand_back()
            if unfinished:
                await asyncio.wait(unfinished)
            await asyncio.sleep(0)  # the callbacks of cancelled tasks add their releases
            handed_back += len(unfinished)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE_SECONDS):
                await asyncio.gather(*(batcher.drained() for batcher in self._queues.values()))
        self._log.info("drained", handed_back=handed_back)

    def work(self) -> list[asyncio.Task[Settlement]]:
        """Tasks of requests without an outcome."""
        return [task for worker in self._queues for task in worker.work()]

    def _hand_back(self) -> None:
        for worker in self._queues:
            worker.hand_back()
