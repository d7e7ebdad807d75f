"""Slots and queue of the gateway: admit, reject and evict requests."""

from __future__ import annotations

import asyncio
from collections import deque

import msgspec


class EngineOptions(msgspec.Struct):
    """Options, which may be changed while the engine runs. Times are in seconds."""

    capacity: int = 32
    queue_size: int = 256
    time_to_first_token: float = 0.0
    time_per_token: float = 0.0
    evicts: bool = False

    def latency_seconds(self, tokens: int) -> float:
        """Seconds for which a request of that many tokens runs."""
        return self.time_to_first_token + tokens * self.time_per_token


class Rejected(Exception):
    """Slots and queue are full; the message is the dropped reason."""


class Engine:
    """Slots and queue; `peak` is the most requests running at once."""

    def __init__(self, options: EngineOptions) -> None:
        self.options = options
        self.running = 0
        self.peak = 0
        self.rejected = 0
        self.evicted = 0
        self.tokens = 0
        self._waiting: deque[tuple[asyncio.Future[None], bool]] = deque()
        self._sheddable: dict[asyncio.Task[None], None] = {}

    @property
    def waiting(self) -> int:
        return sum(not future.done() for future, _ in self._waiting)

    @property
    def saturation(self) -> float:
        """Running and waiting requests as a share of the capacity."""
        return (self.running + self.waiting) / max(1, self.options.capacity)

    def take_at_once(self) -> bool:
        """Take a free slot, if no request waits for it."""
        if self.running >= self.options.capacity or self.waiting:
            return False
        self._start()
        return True

    async def take(self, *, is_sheddable: bool) -> None:
        """Wait for a slot and take it. Raises `Rejected`. Return it with `give_back`."""
        if self.take_at_once():
            return
        if is_sheddable and self.options.evicts:
            self.rejected += 1
            raise Rejected("rejected-saturated")
        if self.waiting >= self.options.queue_size or self.options.capacity == 0:
            self.rejected += 1
            raise Rejected("rejected-saturated")
        if self.options.evicts and not is_sheddable:
            self._evict()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((future, is_sheddable))
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.give_back()
            raise

    def run_sheddable(self, task: asyncio.Task[None]) -> None:
        """Record that this running request may be evicted."""
        self._sheddable[task] = None
        task.add_done_callback(lambda done: self._sheddable.pop(done, None))

    def _evict(self) -> None:
        """Evict the latest sheddable request, to make room for real-time traffic."""
        if self._sheddable:
            task, _ = self._sheddable.popitem()
            self.evicted += 1
            task.cancel("evicted")

    def _start(self) -> None:
        self.running += 1
        self.peak = max(self.peak, self.running)

    def give_back(self) -> None:
        """Return a slot; the next request in the queue gets it."""
        self.running -= 1
        self.admit_waiting()

    def fit(self) -> None:
        """Start or evict requests after a change of the capacity."""
        if self.options.evicts:
            for _ in range(self.running - self.options.capacity):
                self._evict()
        self.admit_waiting()

    def admit_waiting(self) -> None:
        """Start waiting requests while there is capacity."""
        while self._waiting and self.running < self.options.capacity:
            future, _ = self._waiting.popleft()
            if not future.done():
                self._start()
                future.set_result(None)
