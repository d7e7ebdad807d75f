"""The poller: its pools, its loops, and how it stops, or retires in favour of another. Wired by `handlers.wiring`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Sequence
from typing import Final

from handlers.poller.ack_batcher import AckBatcher, Settlement
from handlers.poller.claimer import Claimer
from handlers.poller.maintenance import PeriodicTask
from handlers.poller.queue_watch import QueueWatch
from handlers.poller.worker import Worker
from handlers.telemetry.logs import Logger

_SETTLE_SECONDS: Final = 0.9
"""How long a stopping poller waits for Redis to take the last settlements; the leases cover the rest."""


class Poller:
    """Runs until `stop`, then drains: claims no more, finishes what it can, hands the rest back.

    Until `retire`, it does the same without haste: another poller of this process claims from then on.
    """

    def __init__(
        self,
        pools: Sequence[Claimer],
        watch: QueueWatch,
        tasks: Sequence[PeriodicTask],
        log: Logger,
        *,
        grace_seconds: float,
    ) -> None:
        self._pools = pools
        self._workers: list[Worker] = []
        self._ack_batchers: list[AckBatcher] = []
        self._watch = watch
        self._tasks = tasks
        self._background: set[asyncio.Task[None]] = set()
        self._has_ended = asyncio.Event()
        self._is_running = False
        self._log = log
        self._grace_seconds = grace_seconds
        self._stopping = asyncio.Event()
        self._is_told_to_stop = asyncio.Event()
        self._has_claimed_last = asyncio.Event()

    def add(self, worker: Worker, ack_batcher: AckBatcher) -> None:
        """Serve a queue; also while running."""
        self._workers.append(worker)
        self._ack_batchers.append(ack_batcher)
        if self._is_running:
            self._begin(ack_batcher.run())

    def _begin(self, run: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(run)
        self._background.add(task)
        task.add_done_callback(lambda _: self._has_ended.set())

    @property
    def in_flight(self) -> int:
        """Requests that wait for their outcome."""
        return sum(worker.in_flight for worker in self._workers)

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` or `retire` was called."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Begin to drain, within the grace period; a second call ends it."""
        if self._is_told_to_stop.is_set():
            self._hand_back()
        self._is_told_to_stop.set()
        self._end_claiming()

    def retire(self) -> None:
        """Begin to drain, however long it takes: what waits goes back to the queue, what was sent is finished."""
        self._end_claiming()

    async def claimed_last(self) -> None:
        """Return once no claim of ours is on its way any more: who follows would count too few slots in use."""
        await self._has_claimed_last.wait()

    def _end_claiming(self) -> None:
        self._stopping.set()
        for pool in self._pools:
            pool.stop()

    async def run(self) -> None:
        """Claim, carry and settle until stopped and drained. Raises what ended a loop that must not end."""
        self._is_running = True
        self._begin(self._watch.run())
        for task in self._tasks:
            self._begin(task.run())
        for ack_batcher in self._ack_batchers:
            self._begin(ack_batcher.run())
        claiming = [asyncio.create_task(pool.run()) for pool in self._pools]
        waiting = [asyncio.create_task(event.wait()) for event in (self._stopping, self._has_ended)]
        try:
            await asyncio.wait([*waiting, *claiming], return_when=asyncio.FIRST_COMPLETED)
            for ended in (task for task in (*self._background, *claiming) if task.done()):
                await ended
            await asyncio.gather(*claiming)
            self._has_claimed_last.set()
            await self._drain()
        finally:
            self._has_claimed_last.set()
            for running in (*self._background, *claiming, *waiting):
                running.cancel()
            await asyncio.gather(*self._background, *claiming, *waiting, return_exceptions=True)

    async def _drain(self) -> None:
        handed_back = 0
        if not self._is_told_to_stop.is_set():
            handed_back += await self._retired()
        self._log.info("draining", in_flight=self.in_flight, grace_seconds=self._grace_seconds)
        work = self._work()
        if work:
            _, unfinished = await asyncio.wait(work, timeout=self._grace_seconds)
            self._hand_back()
            if unfinished:
                await asyncio.wait(unfinished)
            await asyncio.sleep(0)  # the callbacks of what was cancelled add its releases now
            handed_back += len(unfinished)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE_SECONDS):
                await asyncio.gather(*(ack_batcher.drained() for ack_batcher in self._ack_batchers))
        self._log.info("drained", handed_back=handed_back)

    async def _retired(self) -> int:
        """Give up what was not sent, and wait for what was, until told to stop; returns how much was given up.

        What waits at a gate would wait at one that is no more.
        """
        self._log.info("retiring", in_flight=self.in_flight)
        handed_back = sum(worker.hand_back_unsent() for worker in self._workers)
        told = asyncio.create_task(self._is_told_to_stop.wait())
        try:
            while (work := self._work()) and not told.done():
                await asyncio.wait([told, *work], return_when=asyncio.FIRST_COMPLETED)
        finally:
            told.cancel()
        await asyncio.sleep(0)  # as above
        return handed_back

    def _work(self) -> list[asyncio.Task[Settlement]]:
        return [task for worker in self._workers for task in worker.work()]

    def _hand_back(self) -> None:
        for worker in self._workers:
            worker.hand_back()
