"""Cancellation layer of the push door.

A message cannot be withdrawn from Pub/Sub. So each request is looked up in the dedup store when it arrives, and
periodically while it waits or is in flight. One call looks up all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from handlers.cancellation import end_if_cancelled
from handlers.contract.request import Request
from handlers.forward.forward import AttemptOptions, Forward, cancelled
from handlers.forward.outcome import Outcome
from handlers.telemetry.logs import Logger

CancelledAt = Callable[[Sequence[str]], Awaitable[list[float | None]]]
"""Returns when each id was cancelled, in Unix seconds, or None."""

SCAN_SECONDS = 0.5
END_AGAIN_SECONDS = 5.0
"""Seconds until a task that still runs is cancelled again: a library may have swallowed the first cancellation."""


class _Ended(msgspec.Struct):
    """Cancellations of one task; the next one is allowed at `again_at` (`time.monotonic`)."""

    times: int = 0
    again_at: float = 0.0


class CancellableForward:
    """Ends the forwarding of requests that `cancelled_at` reports as cancelled.

    `failures` are the exceptions that `cancelled_at` may raise. A request created after the cancellation is another
    submission of the same id; it is not cancelled.
    """

    def __init__(
        self,
        forward: Forward,
        cancelled_at: CancelledAt,
        failures: tuple[type[BaseException], ...],
        log: Logger,
        scan_seconds: float = SCAN_SECONDS,
    ) -> None:
        self._forward = forward
        self._cancelled_at = cancelled_at
        self._failures = failures
        self._log = log
        self._scan_seconds = scan_seconds
        self._running: dict[asyncio.Task[Any], Request] = {}
        self._ended: dict[asyncio.Task[Any], _Ended] = {}
        self._scanning: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._scanning = asyncio.create_task(self._scan_periodically(), name="cancellations")

    async def aclose(self) -> None:
        if self._scanning is not None:
            self._scanning.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._scanning

    async def forward(self, request: Request, options: AttemptOptions) -> Outcome:
        task = asyncio.current_task()
        if task is None or await self._which([request]):
            return cancelled(request)
        self._running[task] = request
        try:
            return await self._forward(request, options)
        except asyncio.CancelledError:
            if task not in self._ended:
                raise
            return cancelled(request)
        finally:
            del self._running[task]
            for _ in range(self._ended.pop(task, _Ended()).times):
                task.uncancel()  # its result must still be published

    async def scan(self) -> None:
        running = dict(self._running)
        if not running:
            return
        hit = await self._which(list(running.values()))
        for task, request in running.items():
            # Compared by identity, because two deliveries may have the same request.
            if any(request is one for one in hit) and self._running.get(task) is request:
                self._end(task)

    def _end(self, task: asyncio.Task[Any]) -> None:
        ended, now = self._ended.setdefault(task, _Ended()), time.monotonic()
        if now >= ended.again_at:
            ended.times, ended.again_at = ended.times + 1, now + END_AGAIN_SECONDS
            task.cancel()

    async def _which(self, requests: Sequence[Request]) -> list[Request]:
        try:
            times = await self._cancelled_at([request.id for request in requests])
        except self._failures as error:
            self._log.warning("cancellation look-up failed", error=type(error).__name__)
            return []
        return [
            request
            for request, at in zip(requests, times, strict=True)
            if at is not None and (request.created is None or request.created <= at)
        ]

    async def _scan_periodically(self) -> None:
        while True:
            await asyncio.sleep(self._scan_seconds)
            await self.scan()
            end_if_cancelled()
