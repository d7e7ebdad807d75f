"""Forwarding that ends when its request is cancelled: for a door whose deliveries nobody can take back.

A delivery is looked up when it comes, and again and again while it is held at a gate or in flight; many in one call.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from handlers.contract.request import Request
from handlers.forward.forward import AttemptOptions, Forward, cancelled
from handlers.forward.outcome import Outcome
from handlers.telemetry.logs import Logger

CancelledAt = Callable[[Sequence[str]], Awaitable[list[float | None]]]
"""When each id was cancelled, in Unix seconds; None where it was not."""

LOOK_SECONDS = 0.5
END_AGAIN_SECONDS = 5.0
"""How long a walk may take to end before it is ended again: it may be giving back what a gate had reserved for it, and
a library may have swallowed the first time."""


@dataclass(slots=True)
class _Ended:
    """How often a walk was ended, and when it may be once more (`time.monotonic`)."""

    times: int = 0
    again_at: float = 0.0


class CancellableForward:
    """`forward`, until `cancelled_at` tells that its request was cancelled; `failures` are what that may raise.

    A request that was created after the cancellation is another submission of its id.
    """

    def __init__(
        self,
        forward: Forward,
        cancelled_at: CancelledAt,
        failures: tuple[type[BaseException], ...],
        log: Logger,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._forward = forward
        self._cancelled_at = cancelled_at
        self._failures = failures
        self._log = log
        self._look_seconds = look_seconds
        self._running: dict[asyncio.Task[Any], Request] = {}
        self._ended: dict[asyncio.Task[Any], _Ended] = {}
        self._looking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to look."""
        self._looking = asyncio.create_task(self._look_for_ever(), name="cancellations")

    async def aclose(self) -> None:
        """Look no more."""
        if self._looking is not None:
            self._looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._looking

    async def forward(self, request: Request, options: AttemptOptions) -> Outcome:
        """One attempt, or `CANCELLED`."""
        walking = asyncio.current_task()
        if walking is None or await self._which([request]):
            return cancelled(request)
        self._running[walking] = request
        try:
            return await self._forward(request, options)
        except asyncio.CancelledError:
            if walking not in self._ended:
                raise
            return cancelled(request)
        finally:
            del self._running[walking]
            for _ in range(self._ended.pop(walking, _Ended()).times):
                walking.uncancel()  # its result is still to be published

    async def look(self) -> None:
        """End what was cancelled of all that is under way."""
        running = dict(self._running)
        if not running:
            return
        hit = await self._which(list(running.values()))
        for walking, request in running.items():
            # Compared by identity: two deliveries may be of one request.
            if any(request is one for one in hit) and self._running.get(walking) is request:
                self._end(walking)

    def _end(self, walking: asyncio.Task[Any]) -> None:
        ended, now = self._ended.setdefault(walking, _Ended()), time.monotonic()
        if now >= ended.again_at:
            ended.times, ended.again_at = ended.times + 1, now + END_AGAIN_SECONDS
            walking.cancel()

    async def _which(self, requests: Sequence[Request]) -> list[Request]:
        try:
            times = await self._cancelled_at([request.id for request in requests])
        except self._failures as error:
            self._log.warning("cancellations are not known", error=type(error).__name__)
            return []
        return [
            request
            for request, at in zip(requests, times, strict=True)
            if at is not None and (request.created is None or request.created <= at)
        ]

    async def _look_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._look_seconds)
            await self.look()
