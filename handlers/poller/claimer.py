"""Claim requests for the free slots of one pool."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final

import msgspec

from handlers.cancellation import end_if_cancelled
from handlers.forward.middleware.breaker import Circuit, CircuitState
from handlers.gates.allowance import Allowance, ProcessShare, all_shares, whole_pool
from handlers.gates.gate import NO_LABELS, Gate, band_of
from handlers.poller.priority import Candidate, Merge, RandomRobin
from handlers.poller.queue_watch import QueueWatch, Waiter, wait_at_most
from handlers.poller.worker import Worker
from handlers.redis_store.connection import STORE_FAILURES
from handlers.redis_store.faults import StoreBackoff
from handlers.redis_store.queue.queue import Claim, RedisQueue
from handlers.telemetry.logs import Logger

_COALESCE_SECONDS: Final = 0.002
"""Time for which freed slots are collected, so that one call claims for several of them."""
_EXPIRED_BATCH: Final = 64
_FEW_QUEUES: Final = 16
"""A pool with at most this many queues claims without polling first, which saves a call."""
_POLL_SECONDS: Final = 0.1
"""Interval at which a pool without room checks whether its gate has opened."""
_EXPIRE_SECONDS: Final = 1.0
"""If a queue has not been polled for this long, its overdue requests are answered."""


_ONLY_RETRIES_SECONDS: Final = 1.0
"""Pause after a claim with an open circuit found only retries, since each search for others may read 1,000 members."""


class ClaimedQueue:
    """One queue of a pool, with its worker and gates.

    `circuit` belongs to its gateway; other queues may share it.
    """

    def __init__(self, queue: RedisQueue, worker: Worker) -> None:
        self.queue = queue
        self.worker = worker
        self.labels: Mapping[str, str] = NO_LABELS
        self.gates: Sequence[Gate] = ()
        self.circuit: Circuit | None = None
        self._allowance: Allowance | None = None
        self._in_use = 0

    def change(
        self,
        *,
        labels: Mapping[str, str] = NO_LABELS,
        gates: Sequence[Gate] = (),
        slots: int = 1,
        share: Callable[[], ProcessShare] = whole_pool,
        circuit: Circuit | None = None,
    ) -> None:
        """Set the options; slots in use stay counted. The pool has `slots`."""
        self.labels, self.gates, self.circuit = labels, gates, circuit
        if not gates:
            self._allowance = None
        elif self._allowance is None:
            self._allowance = Allowance(slots, all_shares(gates), own_share=share)
            self._allowance.started(self._in_use)
        else:
            self._allowance.change(slots, all_shares(gates), own_share=share)

    @property
    def has_open_circuit(self) -> bool:
        """Whether the circuit of the queue's gateway is not closed."""
        return self.circuit is not None and self.circuit.state is not CircuitState.CLOSED

    def room(self) -> int | None:
        """Number of requests that the queue's gates and circuit admit now (None: unlimited)."""
        rooms = [gate.room(self.labels) for gate in self.gates]
        if self._allowance is not None:
            rooms.append(self._allowance.room())
        if self.circuit is not None and self.has_open_circuit:
            rooms.append(self.circuit.claimable())
        return min((room for room in rooms if room is not None), default=None)

    def started(self, count: int) -> None:
        self._in_use += count
        if self.circuit is not None:
            self.circuit.claimed()
        if self._allowance is not None:
            self._allowance.started(count)

    def finished(self) -> None:
        self._in_use -= 1
        if self._allowance is not None:
            self._allowance.finished()


class ClaimerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Slots of a pool, and how its queues share them.

    `share` returns this process's share of the slots, `lane_of` the lane for a queue's labels. Without a `watch`, idle
    queues are polled once per poll interval.
    """

    slots: int
    poll_interval_seconds: float
    gates: Sequence[Gate] = ()
    merge: Merge = msgspec.field(default_factory=RandomRobin)
    share: Callable[[], ProcessShare] = whole_pool
    lane_of: Callable[[Mapping[str, str]], int] = band_of
    watch: QueueWatch | None = None


def _positions() -> Iterator[float]:
    """Positions to claim at: 0 is the head, 1 the end."""
    while True:
        yield 1.0
        yield random.random()
        yield 1.0
        yield 0.0


class Claimer:
    """Claims for the queues of a pool while slots are free."""

    def __init__(self, pool_id: str, options: ClaimerOptions, log: Logger) -> None:
        self.pool_id = pool_id
        self.queues: dict[str, ClaimedQueue] = {}
        self._dormant: dict[str, Callable[[], object]] = {}
        self.options = options
        self._waiter: Waiter | None = None
        self._is_idle = False
        self._allowance = Allowance(options.slots, all_shares(options.gates), own_share=options.share)
        self._backoff = StoreBackoff("claiming", log, pool=pool_id)
        self._asked_at: dict[str, float] = {}
        self._positions = _positions()
        self._retries_until = 0.0
        self._freed = asyncio.Event()
        self._stopped = asyncio.Event()
        self.has_tried = asyncio.Event()
        """Set once the first claim was tried, whether it succeeded or not."""

    def change(self, options: ClaimerOptions) -> None:
        """Claim under `options` from now on; slots in use stay counted."""
        self.options = options
        self._allowance.change(options.slots, all_shares(options.gates), own_share=options.share)
        self._wake()

    @property
    def in_flight(self) -> int:
        return self._allowance.in_use

    @property
    def budget(self) -> float:
        """Fraction (0 to 1) of this process's slots that the gates allow."""
        ours = self.options.share().of(self.options.slots)
        return min(1.0, self._allowance.limit() / ours) if ours else 0.0

    def add(self, queue: ClaimedQueue) -> None:
        """Start to claim from this queue."""
        name = queue.queue.name
        self._dormant.pop(name, None)
        self.queues[name] = queue
        self._wake()

    def add_dormant(self, name: str, build: Callable[[], object]) -> None:
        """Claim from this queue once it has requests; `build` must call `add`."""
        self._dormant[name] = build
        self._wake()

    def remove(self, name: str) -> None:
        """Stop claiming from this queue; a running claim still reaches its worker."""
        self._dormant.pop(name, None)
        self.queues.pop(name, None)
        self._asked_at.pop(name, None)
        self._wake()

    @property
    def is_waiting_for_store(self) -> bool:
        """Whether Redis did not answer the last claim."""
        return self._backoff.has_failed

    @property
    def refusal(self) -> str:
        """Why Redis refuses claims, with a fix; else empty."""
        return self._backoff.refusal

    def _free(self, queue: ClaimedQueue) -> None:
        """Free the slot of one request of that queue."""
        self._allowance.finished()
        queue.finished()
        self._freed.set()

    def stop(self) -> None:
        """Stop claiming."""
        self._stopped.set()
        self._wake()

    def _wake(self) -> None:
        """End a wait: queues or options have changed."""
        self._freed.set()
        if self._waiter is not None:
            self._waiter.release([])

    async def run(self) -> None:
        while not self._stopped.is_set():
            try:
                await self._tick()
            except (*STORE_FAILURES, MemoryError) as error:  # the reply was too large for memory: try again
                end_if_cancelled()
                await wait_at_most(self._stopped, self._backoff.failed(error))
            else:
                self._backoff.reset()
                end_if_cancelled()
            self.has_tried.set()

    async def _tick(self) -> None:
        await self._expire()
        room = self._room()
        if room < 1:
            # No event reports that a closed gate has opened, so check it again after a while.
            await self._wait_for_slot(_POLL_SECONDS)
            return
        names = await self._filled_queues()
        taken = await self._claim(min(room, self._room()), names)
        self._is_idle = taken == 0
        if taken:
            if self.options.watch is not None:
                self.options.watch.active()
            await asyncio.sleep(_COALESCE_SECONDS)
        elif names:
            await wait_at_most(self._stopped, self.options.poll_interval_seconds)

    async def _filled_queues(self) -> list[str]:
        """Queues to claim from: all if few and active, else non-empty ones."""
        names, watch = [*self.queues, *self._dormant], self.options.watch
        if watch is not None and self._backoff.has_failed:
            # Poll Redis now: a claimer that waits for requests would not notice that Redis is back.
            return [*await watch.filled(names)]
        is_active = not self._is_idle and len(names) <= _FEW_QUEUES and not self._dormant
        if not names or (watch is not None and not is_active):
            return await self._awaited(names, watch)
        return names

    async def _awaited(self, names: Sequence[str], watch: QueueWatch | None) -> list[str]:
        """Wait until the watch finds non-empty queues; return them."""
        closed = {name for name, queue in self.queues.items() if queue.room() == 0}
        waiter = self._waiter = Waiter([name for name in names if name not in closed])
        try:
            if self._stopped.is_set():
                return []
            if watch is None:
                return await waiter.found(None)
            found = await watch.wait(waiter, _POLL_SECONDS if closed else None)
        finally:
            self._waiter = None
        polled_at = time.monotonic()
        self._asked_at.update((name, polled_at) for name in names if name not in closed)
        return found

    def _queue(self, name: str) -> ClaimedQueue | None:
        """The queue of that name, built if dormant; None if removed meanwhile."""
        if name in self._dormant:
            self._dormant[name]()
        return self.queues.get(name)

    def _room(self) -> int:
        """Number of free slots; 0 if the byte budget is used up."""
        has_bytes = all(queue.worker.has_room_for_request for queue in self.queues.values())
        return self._allowance.room() if has_bytes else 0

    async def _claim(self, room: int, names: Sequence[str]) -> int:
        """Claim up to `room` requests, shared among queues by the merge policy."""
        taken, merge = 0, self.options.merge
        queues = {name: queue for name in names if (queue := self._queue(name)) is not None}
        candidates = [
            Candidate(name, self.options.lane_of(queue.labels), queue.room()) for name, queue in queues.items()
        ]
        now = time.monotonic()
        turns = merge.turns(candidates, room, now)
        if any(queue.has_open_circuit for queue in queues.values()):
            # Random order, so that a queue whose requests always fail does not get all probes.
            random.shuffle(turns)
        for turn in turns:
            if self._stopped.is_set() or taken >= room or (taken and not self._room()):
                break
            if turn.queue not in self.queues:  # removed while another queue was claimed from
                continue
            taken += await self._claim_from(self.queues[turn.queue], min(turn.most, room - taken))
            merge.asked(turn.queue, now)
        return taken

    async def _claim_from(self, queue: ClaimedQueue, most: int) -> int:
        if not queue.has_open_circuit:
            half = max(1, int(self.options.share().of(self.options.slots)) // 2)
            retries = sum(one.worker.retries_in_slots for one in self.queues.values())
            return len(await self._take(queue, most, most_retries=max(0, half - retries)))
        # Claim from the head, the end and the middle, and retries last, so that requests that always fail do not block
        # the others.
        taken = 0
        while (count := min(most - taken, -(-most // 2), queue.room() or 0)) > 0:
            now = time.monotonic()
            most_retries = 0 if now >= self._retries_until else None
            claims = await self._take(queue, count, most_retries=most_retries, position=next(self._positions))
            if not claims:
                break
            if most_retries == 0 and all(claim.is_retry for claim in claims):
                self._retries_until = now + _ONLY_RETRIES_SECONDS
            taken += len(claims)
        return taken

    async def _take(
        self, queue: ClaimedQueue, most: int, *, most_retries: int | None, position: float = 0.0
    ) -> list[Claim]:
        if most < 1:
            return []
        with queue.worker.in_use():
            claims = await queue.queue.claim(
                most,
                max_bytes=queue.worker.budget.requests.room(),
                most_retries=most_retries,
                position=position,
            )
            if claims:
                self._allowance.started(len(claims))
                queue.started(len(claims))
                queue.worker.start(claims, partial(self._free, queue))
        self._asked_at[queue.queue.name] = time.monotonic()
        return claims

    async def _expire(self) -> None:
        """Answer overdue requests of queues not polled for `_EXPIRE_SECONDS`, without slots."""
        now, watch = time.monotonic(), self.options.watch
        due = [
            name
            for name in [*self.queues, *self._dormant]
            if now - self._asked_at.setdefault(name, now) >= _EXPIRE_SECONDS
        ]
        if not due:
            return
        self._asked_at.update((name, now) for name in due)
        for name in due if watch is None else await watch.filled(due):
            queue = self._queue(name)
            if queue is None or queue.worker.is_settling_without_slots or self._stopped.is_set():
                continue
            with queue.worker.in_use():
                claims = await queue.queue.claim(_EXPIRED_BATCH, only_expired=True)
                await queue.worker.answer_expired(claims)

    async def _wait_for_slot(self, timeout_seconds: float) -> None:
        """Wait for a slot, at most until the timeout."""
        self._freed.clear()
        if self._room() <= 0:
            await wait_at_most(self._freed, timeout_seconds)
