"""`local-max-concurrency`: limits the requests in flight of this process."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from typing import Annotated, Final, Literal

import msgspec

from handlers.contract.accepted import about
from handlers.contract.request import Request
from handlers.gates.gate import NO_LABELS, CountedSlot, Gate, Go, Hold, Refuse, Verdict
from handlers.gates.sources import GateSources
from handlers.telemetry.dependencies import GateState

CLASSIFYING: Final = "classifying"
BLOCKING: Final = "blocking"
_FULL_RETRY_SECONDS: Final = 1.0


class LocalConcurrencyParameters(msgspec.Struct, frozen=True, kw_only=True):
    """The limit, and what happens to requests beyond it."""

    limit: Annotated[int, about("Maximum number of requests in flight of one process.", ge=1, le=1_000_000_000)]
    gating_mode: Annotated[
        Literal["classifying", "blocking"],
        about(
            "`classifying`: requests beyond the limit go back to the queue. `blocking`: they wait here. "
            "In `redis-quota` these words mean other modes."
        ),
    ] = CLASSIFYING


class LocalConcurrencyGate(Gate):
    """Counts requests in flight."""

    gate_type = "local-max-concurrency"

    def __init__(self, parameters: LocalConcurrencyParameters, sources: GateSources) -> None:
        self._limit = parameters.limit
        self._is_blocking = parameters.gating_mode == BLOCKING
        self._waiters = Waiters()
        self.in_use = 0
        """Number of requests in flight."""
        self._log = sources.log

    async def start(self) -> None:
        self._log.info("gate started", gate=self.gate_type, limit=self._limit, blocking=self._is_blocking)

    async def renewed(self, new: Gate, discarded: list[Gate]) -> Gate:
        """This gate with the options of `new`. Requests in flight stay counted."""
        if not isinstance(new, LocalConcurrencyGate):
            return await super().renewed(new, discarded)
        self._limit, self._is_blocking = new._limit, new._is_blocking
        await self.start()
        self._waiters.wake(max(0, self.room()))
        return self

    def room(self, labels: Mapping[str, str] = NO_LABELS) -> int:  # noqa: ARG002 - the limit is for all alike
        return self._limit - self.in_use

    async def admit(self, request: Request) -> Verdict:  # noqa: ARG002 - the limit is for all alike
        if self.in_use < self._limit:
            self.in_use += 1
            return Go(CountedSlot(self.leave))
        if self._is_blocking:
            return Hold("full", self.wait_open)
        return Refuse(_FULL_RETRY_SECONDS, "full")

    async def wait_open(self, until_at: float) -> bool:
        """Wait for a free slot, first come first served."""
        return self.room() > 0 or await self._waiters.wait(until_at)

    def leave(self) -> None:
        self.in_use -= 1
        self._waiters.wake()

    def state(self) -> GateState:
        return GateState(
            self.gate_type,
            value=self.in_use,
            threshold=self._limit,
            why_closed="" if self.room() else "full",
            figures={"in_use": self.in_use, "waiting": len(self._waiters)},
        )


class Waiters:
    """FIFO queue of waiting coroutines; each release wakes one."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()

    def __len__(self) -> int:
        return sum(not future.done() for future in self._waiting)

    async def wait(self, until_at: float) -> bool:
        """Wait until woken (True) or until `until_at`, in Unix seconds (False)."""
        left = until_at - time.time()
        if left <= 0:
            return False
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        try:
            async with asyncio.timeout(left):
                await future
        except TimeoutError:
            return False
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.wake()  # pass the free slot on to the next one
            raise
        finally:
            if future in self._waiting:
                self._waiting.remove(future)
        return True

    def wake(self, count: int = 1) -> None:
        """Wake the `count` coroutines that have waited longest."""
        while count > 0 and self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
                count -= 1
