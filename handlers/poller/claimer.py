"""A pool of slots that queues share: claims as many as there are free slots, in one round trip a queue."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from handlers.backoff import Backoff
from handlers.cancellation import end_if_cancelled
from handlers.forward.middleware.circuit import Circuit, CircuitState
from handlers.gates.allowance import WHOLE_POOL, Allowance, ProcessShare, all_shares
from handlers.gates.gate import Gate
from handlers.gates.labels import band_of
from handlers.poller.priority import Candidate, Merge, RandomRobin
from handlers.poller.queue_watch import QueueWatch, Waiter
from handlers.poller.worker import Worker
from handlers.redis_store.connection import STORE_FAILURES
from handlers.redis_store.faults import explained, refusal
from handlers.redis_store.queue.queue import RedisQueue
from handlers.telemetry.logs import Logger

_COALESCE_SECONDS: Final = 0.001
"""How long freed slots are collected before the next claim: one round trip for several of them."""
_EXPIRED_BATCH: Final = 64
_FEW_QUEUES: Final = 16
"""Up to so many queues, an active pool claims from all without a look: that saves a round trip."""
_LOOK_SECONDS: Final = 0.1
"""How often a pool without room looks whether its gate has opened."""
_EXPIRE_SECONDS: Final = 1.0
"""How long a queue is not asked, for want of room or its turn, before it is looked for what has expired in it."""


@dataclass(frozen=True, slots=True)
class Source:
    """A queue, who carries its claims, and its own gates; `allowance` counts against their budget.

    `circuit` is its gateway's, which other queues may share.
    """

    queue: RedisQueue
    worker: Worker
    labels: Mapping[str, str] = field(default_factory=dict)
    gates: Sequence[Gate] = ()
    allowance: Allowance | None = None
    circuit: Circuit | None = None

    @property
    def is_sparing(self) -> bool:
        """Whether its gateway's circuit is not closed."""
        return self.circuit is not None and self.circuit.state is not CircuitState.CLOSED

    def room(self) -> int | None:
        """How many more of this queue its own gates would let go now; None without a limit."""
        rooms = [gate.room(self.labels) for gate in self.gates]
        if self.allowance is not None:
            rooms.append(self.allowance.room())
        if self.circuit is not None and self.is_sparing:
            rooms.append(self.circuit.claimable())
        return min((room for room in rooms if room is not None), default=None)


def _positions() -> Iterator[float]:
    """Where to claim while a circuit is not closed: at the queue's end, and in turn at its head or anywhere."""
    while True:
        yield 1.0
        yield random.random()
        yield 1.0
        yield 0.0


class Claimer:
    """Claims for its sources while it has room; `stop` ends the claiming, not the work."""

    def __init__(
        self,
        pool_id: str,
        slots: int,
        poll_interval_seconds: float,
        log: Logger,
        *,
        gates: Sequence[Gate] = (),
        merge: Merge | None = None,
        part: Callable[[], ProcessShare] = lambda: WHOLE_POOL,
        lane_of: Callable[[Mapping[str, str]], int] = band_of,
        watch: QueueWatch | None = None,
    ) -> None:
        """Without a `watch`, every queue is claimed from each poll interval."""
        self.pool_id = pool_id
        self.lane_of = lane_of
        self.slots = slots
        self.sources: dict[str, Source] = {}
        """Queues whose parts are built."""
        self._dormant: dict[str, Callable[[], object]] = {}
        self._watch = watch
        self._waiter: Waiter | None = None
        self._is_idle = False
        self._part = part
        self._allowance = Allowance(slots, all_shares(gates), part=part)
        self._merge = merge or RandomRobin()
        self._poll_interval_seconds = poll_interval_seconds
        self._log = log
        self._backoff = Backoff()
        self.refusal = ""
        """The right or key for which the server refuses claims, and what mends it; empty while it does not."""
        self._asked_at: dict[str, float] = {}
        self._positions = _positions()
        self._freed = asyncio.Event()
        self._stopped = asyncio.Event()

    @property
    def in_flight(self) -> int:
        """Requests that hold a slot."""
        return self._allowance.in_use

    @property
    def budget(self) -> float:
        """What part of its slots (of those that are ours) the pool's gate allows in use now, 0 to 1."""
        ours = self._part().of(self.slots)
        return min(1.0, self._allowance.limit() / ours) if ours else 0.0

    def take_over(self, before: Claimer) -> None:
        """Go on with the slots that `before` has in use: our claims have what those leave over."""
        self._allowance.take_over(before._allowance)
        for name in [name for name in before.sources if name in self._dormant]:
            self._dormant[name]()
        for name, source in self.sources.items():
            own_before = before.sources.get(name)
            if source.allowance is not None and own_before is not None and own_before.allowance is not None:
                source.allowance.take_over(own_before.allowance)

    def add(self, source: Source) -> None:
        """Claim from this queue too."""
        self._dormant.pop(source.queue.name, None)
        self.sources[source.queue.name] = source
        source.worker.on_freed = partial(self.free, source.queue.name)

    def add_dormant(self, name: str, build: Callable[[], object]) -> None:
        """Claim from this queue too, once it has requests; `build` must call `add`."""
        self._dormant[name] = build

    @property
    def has_queues(self) -> bool:
        """Whether any queue belongs to this pool."""
        return bool(self.sources or self._dormant)

    @property
    def is_waiting_for_store(self) -> bool:
        """Whether the last claim got no answer."""
        return self._backoff.has_failed

    def free(self, queue_name: str) -> None:
        """A request of that queue gave its slot back."""
        self._allowance.finished()
        source = self.sources[queue_name]
        if source.allowance is not None:
            source.allowance.finished()
        self._freed.set()

    def stop(self) -> None:
        """Claim no more."""
        self._stopped.set()
        self._freed.set()
        if self._waiter is not None:
            self._waiter.release([])

    async def run(self) -> None:
        """Claim until stopped."""
        while not self._stopped.is_set():
            try:
                await self._tick()
            except (*STORE_FAILURES, MemoryError) as error:  # a reply that memory has no room for comes again
                end_if_cancelled()
                self.refusal = refusal(error)
                if not self._backoff.has_failed:
                    self._log.warning("claiming waits for redis", pool=self.pool_id, error=explained(error))
                await self._rest(self._backoff.next_seconds())
            else:
                self._backoff.reset()
                self.refusal = ""
                end_if_cancelled()

    async def _tick(self) -> None:
        await self._expire()
        room = self._room()
        if room < 1:
            # A gate that closes is looked at often: its budget changes without any event of ours.
            await self._wait_for_slot(_LOOK_SECONDS)
            return
        names = await self._filled_queues()
        taken = await self._claim(min(room, self._room()), names)
        self._is_idle = taken == 0
        if taken:
            if self._watch is not None:
                self._watch.active()
            await asyncio.sleep(_COALESCE_SECONDS)
        elif names:
            await self._rest(self._poll_interval_seconds)

    async def _filled_queues(self) -> list[str]:
        """Queues to claim from: while active and few, all; else those that the watch finds filled, once there are."""
        names = [*self.sources, *self._dormant]
        is_active = not self._is_idle and len(names) <= _FEW_QUEUES and not self._dormant
        if self._watch is None or is_active:
            return names
        closed = {name for name, source in self.sources.items() if source.room() == 0}
        self._waiter = Waiter([name for name in names if name not in closed])
        try:
            if self._stopped.is_set():
                return []
            found = await self._watch.wait(self._waiter, _LOOK_SECONDS if closed else None)
        finally:
            self._waiter = None
        looked_at = time.monotonic()
        self._asked_at.update((name, looked_at) for name in names if name not in closed)
        return found

    def _source(self, name: str) -> Source:
        if name in self._dormant:
            self._dormant[name]()
        return self.sources[name]

    def _room(self) -> int:
        """How many requests may be claimed now: none where the largest possible one has no room in memory."""
        has_bytes = all(source.worker.has_room_for_request for source in self.sources.values())
        return self._allowance.room() if has_bytes else 0

    async def _claim(self, room: int, names: Sequence[str]) -> int:
        """Claim up to `room` requests from these queues, as the merge policy shares them."""
        taken = 0
        sources = {name: self._source(name) for name in names}
        candidates = [
            Candidate(name, self.lane_of(source.labels), source.room()) for name, source in sources.items()
        ]
        now = time.monotonic()
        turns = self._merge.turns(candidates, room, now)
        if any(source.is_sparing for source in sources.values()):
            # A queue whose requests always fail must not take every probe.
            random.shuffle(turns)
        for turn in turns:
            if self._stopped.is_set() or taken >= room or (taken and not self._room()):
                break
            taken += await self._claim_from(self.sources[turn.queue], min(turn.most, room - taken))
            self._merge.asked(turn.queue, now)
        return taken

    async def _claim_from(self, source: Source, most: int) -> int:
        if not source.is_sparing:
            return await self._take(source, most, 0.0)
        # From both ends and in between: requests that always fail must not hide those that would succeed.
        taken = 0
        while (count := min(most - taken, -(-most // 2), source.room() or 0)) > 0:
            claimed = await self._take(source, count, next(self._positions))
            if not claimed:
                break
            taken += claimed
        return taken

    async def _take(self, source: Source, most: int, position: float) -> int:
        if most < 1:
            return 0
        half = max(1, int(self._part().of(self.slots)) // 2)
        retries = sum(one.worker.retries_in_slots for one in self.sources.values())
        claims = await source.queue.claim(
            most,
            max_bytes=source.worker.budget.requests.room(),
            most_retries=max(0, half - retries),
            position=position,
        )
        self._asked_at[source.queue.name] = time.monotonic()
        if claims:
            if source.circuit is not None:
                source.circuit.claimed()
            self._allowance.started(len(claims))
            if source.allowance is not None:
                source.allowance.started(len(claims))
            source.worker.start(claims)
        return len(claims)

    async def _expire(self) -> None:
        """Answer expired requests of queues that were not polled for a while, which takes neither room nor a turn."""
        now = time.monotonic()
        due = [
            name
            for name in [*self.sources, *self._dormant]
            if now - self._asked_at.setdefault(name, now) >= _EXPIRE_SECONDS
        ]
        if not due:
            return
        self._asked_at.update((name, now) for name in due)
        for name in due if self._watch is None else await self._watch.filled(due):
            source = self._source(name)
            if source.worker.is_settling_without_slots or self._stopped.is_set():
                continue
            await source.worker.answer_expired(await source.queue.claim(_EXPIRED_BATCH, only_expired=True))

    async def _wait_for_slot(self, timeout_seconds: float) -> None:
        """Wait for a slot, but no longer."""
        self._freed.clear()
        if self._room() > 0:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._freed.wait()

    async def _rest(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopped.wait()
