"""`local-max-concurrency`: at most so many requests at a time in this process."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from handlers.contract.request import Request
from handlers.gates.gate import NO_LABELS, Gate, GateState, Go, Hold, Refuse, Verdict
from handlers.gates.parameters import choice, parameter, whole
from handlers.gates.sources import GateSources

CLASSIFYING: Final = "classifying"
BLOCKING: Final = "blocking"
_FULL_RETRY_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalConcurrencyParameters:
    """When full, `classifying` refuses and `blocking` holds."""

    limit: int = parameter(whole(least=1), means="Requests at a time, of this process alone.")
    gating_mode: str = parameter(
        choice(CLASSIFYING, BLOCKING),
        default=CLASSIFYING,
        means="`classifying`: requests beyond the limit go too, labelled `overflow`. `blocking`: they wait.",
    )


@dataclass(slots=True)
class _Places:
    """How many are taken, and who waits for one."""

    waiters: Waiters
    in_use: int = 0


class LocalConcurrencyGate(Gate):
    """Counts what it let go and what came back."""

    gate_type = "local-max-concurrency"

    def __init__(self, parameters: LocalConcurrencyParameters, sources: GateSources) -> None:
        self._limit = parameters.limit
        self._is_blocking = parameters.gating_mode == BLOCKING
        self._places = _Places(Waiters(sources.clock))
        self._log = sources.log

    async def start(self) -> None:
        """Log the limit."""
        self._log.info("gate counts", gate=self.gate_type, limit=self._limit, blocking=self._is_blocking)

    def take_over(self, before: Gate) -> None:
        """What the other let go counts here too: both share the places."""
        if isinstance(before, LocalConcurrencyGate):
            self._places = before._places

    @property
    def in_use(self) -> int:
        """Requests that hold a place."""
        return self._places.in_use

    def room(self, labels: Mapping[str, str] = NO_LABELS) -> int:  # noqa: ARG002 - the limit is for all alike
        """What is left of the limit."""
        return self._limit - self.in_use

    async def admit(self, request: Request) -> Verdict:  # noqa: ARG002 - the limit is for all alike
        """Go while there is room."""
        if self.in_use < self._limit:
            self._places.in_use += 1
            return Go(_Place(self))
        if self._is_blocking:
            return Hold("full", self.wait_open)
        return Refuse(_FULL_RETRY_SECONDS, "full")

    async def wait_open(self, until_at: float) -> bool:
        """Wait for a release, in the order of asking."""
        return self.room() > 0 or await self._places.waiters.wait(until_at)

    def leave(self) -> None:
        """One request is over."""
        self._places.in_use -= 1
        self._places.waiters.wake()

    def state(self) -> GateState:
        """How many are in flight, of how many."""
        return GateState(
            self.gate_type,
            value=self.in_use,
            threshold=self._limit,
            why_closed="" if self.room() else "full",
            figures={"in_use": self.in_use, "waiting": len(self._places.waiters)},
        )


class _Place:
    """One request's place; given back once, whoever asks how often."""

    def __init__(self, gate: LocalConcurrencyGate) -> None:
        self._gate: LocalConcurrencyGate | None = gate

    async def release(self) -> None:
        """Give it back."""
        if self._gate is not None:
            gate, self._gate = self._gate, None
            gate.leave()

    async def give_back(self) -> None:
        """Give it back."""
        await self.release()


class Waiters:
    """A queue of waiting coroutines; `clock` gives Unix seconds."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._waiting: deque[asyncio.Future[None]] = deque()

    def __len__(self) -> int:
        return sum(not future.done() for future in self._waiting)

    async def wait(self, until_at: float) -> bool:
        """True when woken, False at `until_at`."""
        left = until_at - self._clock()
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
                self.wake()  # the room that woke us is for the next one
            raise
        finally:
            if future in self._waiting:
                self._waiting.remove(future)
        return True

    def wake(self, count: int = 1) -> None:
        """Wake the `count` that wait longest."""
        while count > 0 and self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
                count -= 1
