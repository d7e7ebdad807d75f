"""Periodic work on a process's queues: leases, reclaims, cancellations, depths.

Each task serves all queues. It finds the non-empty queues with one command and handles only these. So an idle process
sends one command per task and interval, however many queues are configured.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

import msgspec

from handlers.cancellation import end_if_cancelled
from handlers.contract.errors import InvalidRequest
from handlers.contract.request import decode_member
from handlers.poller.worker import Worker
from handlers.redis_store.admin.depths import existing, queue_depths
from handlers.redis_store.connection import STORE_FAILURES, STORE_REFUSALS, Store
from handlers.redis_store.faults import StoreBackoff, explained
from handlers.redis_store.keys import queue_keys, reclaim_keys
from handlers.redis_store.queue.cancellations import Cancellation, Cancellations
from handlers.redis_store.queue.queue import QueueOptions, RedisQueue, Retries
from handlers.telemetry.families import DEADLINE_BOUNDS_SECONDS
from handlers.telemetry.logs import Logger

CANCEL_SECONDS: Final = 0.5
"""Interval of the scans for cancelled requests."""
DEPTHS_SECONDS: Final = 5.0
"""Interval of the depth metrics; the dashboard's step is 15 s."""
_RECLAIM_BATCH: Final = 1_000
_AT_ONCE: Final = 8
"""Queues that one task serves at the same time, each over its own connection."""


class QueueParts(msgspec.Struct):
    """The parts of one queue. Its leases were last renewed at `renewed_at` (`time.monotonic`)."""

    queue: RedisQueue
    worker: Worker
    renewed_at: float = msgspec.field(default_factory=time.monotonic)
    was_empty: bool = False


class QueueTable:
    """The queues of a process by name.

    A queue is dormant until it has requests; then its parts are built.
    """

    def __init__(self) -> None:
        self.built: dict[str, QueueParts] = {}
        self.retiring: dict[str, QueueParts] = {}
        """Removed queues that still hold claims."""
        self._dormant: dict[str, Callable[[], object]] = {}
        self.version = 0
        """Changes with the configured names."""

    @property
    def names(self) -> list[str]:
        return [*self.built, *self._dormant]

    def add(self, parts: QueueParts) -> None:
        name = parts.queue.name
        self.version += name not in self._dormant and name not in self.built
        self._dormant.pop(name, None)
        self.retiring.pop(name, None)
        self.built[name] = parts

    def add_dormant(self, name: str, build: Callable[[], object]) -> None:
        """Add a queue without parts; `build` must call `add`."""
        self.version += name not in self._dormant
        self._dormant[name] = build

    def retire(self, name: str) -> QueueParts | None:
        """Remove a configured queue; return its parts, which stay in `retiring`."""
        self.version += 1
        self._dormant.pop(name, None)
        parts = self.built.pop(name, None)
        if parts is not None:
            self.retiring[name] = parts
        return parts

    def parts(self, name: str) -> QueueParts | None:
        """The parts of a queue; None if it is no longer configured."""
        if name in self._dormant:
            self._dormant[name]()
        return self.built.get(name)

    def holding(self) -> list[QueueParts]:
        """Queues that hold claims, including retiring ones."""
        return [parts for parts in self._all() if parts.worker.held_claims()]

    def empty(self) -> list[QueueParts]:
        return [parts for parts in self._all() if not parts.worker.held_claims()]

    def _all(self) -> list[QueueParts]:
        return [*self.built.values(), *self.retiring.values()]


class LeaseRenewal:
    """Renews leases on the workers' event loop: a stalled process loses them."""

    def __init__(
        self, table: QueueTable, lease_seconds: float, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._table = table
        self._lease_seconds = lease_seconds
        self._monotonic = monotonic

    async def tick(self) -> None:
        """Renew all leases.

        Stops the work of a request whose lease was lost, or could not be renewed for `lease_seconds`.
        """
        now = self._monotonic()
        for parts in self._table.empty():
            parts.renewed_at = now
        await _each(self._table.holding(), self._renew)

    async def _renew(self, parts: QueueParts) -> None:
        started_at = self._monotonic()
        claims = parts.worker.held_claims()
        try:
            lost = await parts.queue.renew(claims)
        except STORE_FAILURES:
            if self._monotonic() - parts.renewed_at > self._lease_seconds:
                parts.worker.lose(claims)
            raise
        parts.renewed_at = started_at
        parts.worker.metrics.renewed(len(claims) - len(lost), 0)
        parts.worker.lose(lost)


class Reclaimer:
    """Returns claims with expired leases to their queues, or dead-letters them."""

    def __init__(
        self, redis: Store, table: QueueTable, log: Logger, *, max_deliveries: int, cluster: bool = False
    ) -> None:
        self._redis = redis
        self._table = table
        self._cluster = cluster
        self._version = -1
        self._queues_of: dict[str, str] = {}
        self._log = log
        self._max_deliveries = max_deliveries

    async def tick(self) -> None:
        queues_of = self._keys()
        found = await existing(self._redis, list(queues_of))
        claimed = {queues_of[key] for key in found}
        claimed |= {name for name, parts in self._table.built.items() if parts.queue.has_lost_replies}
        await _each([parts for name in claimed if (parts := self._table.parts(name))], self._reclaim)

    def _keys(self) -> dict[str, str]:
        """Queue names by the keys of their claims; cached."""
        if self._version != self._table.version:
            self._version = self._table.version
            names, cluster = self._table.names, self._cluster
            self._queues_of = {key: name for name in names for key in reclaim_keys(name, cluster=cluster)}
        return self._queues_of

    async def _reclaim(self, parts: QueueParts) -> None:
        """Reclaim from one queue, unless earlier dead letters are still unsettled."""
        if parts.worker.is_settling_without_slots:
            return
        reclaimed = await parts.queue.reclaim(_RECLAIM_BATCH, self._max_deliveries)
        if reclaimed.returned:
            parts.worker.metrics.reclaimed(reclaimed.returned)
            self._log.warning("claims reclaimed", queue=parts.queue.name, count=reclaimed.returned)
        if reclaimed.dead:
            for claim in reclaimed.dead:
                self._log.error(
                    "redelivery limit exceeded", id=claim.request_id, queue=claim.queue, deliveries=claim.delivery_count
                )
            await parts.worker.dead_letter(reclaimed.dead, self._max_deliveries)


class Canceller:
    """Answers cancelled requests, whether queued, waiting at a gate or in flight.

    A stopping poller claims nothing; other pollers answer cancelled requests that are still queued.
    """

    def __init__(
        self,
        redis: Store,
        table: QueueTable,
        retries: Retries | None,
        log: Logger,
        *,
        now: Callable[[], float],
        is_stopping: Callable[[], bool] = lambda: False,
        is_empty: Callable[[], bool] = lambda: False,
    ) -> None:
        """Create the canceller. It does not scan while `is_empty` returns True.

        `is_empty`: all queues and the retry set are known to be empty.
        """
        self._redis = redis
        self._table = table
        self._retries = retries
        self._log = log
        self._is_stopping = is_stopping
        self._is_empty = is_empty
        self._cancellations = Cancellations(redis, now=now)

    async def tick(self) -> None:
        """Answer cancelled queued requests; stop the work of claimed ones."""
        if not (self._is_stopping() or self._is_empty() or self._is_settling()):
            cancelled = await self._cancellations.due()
            if cancelled:
                await self._recall(cancelled)
            self._cancellations.searched()
        await _each(self._table.holding(), self._cancel_held)

    def _is_settling(self) -> bool:
        return any(parts.worker.is_settling_without_slots for parts in self._table.built.values())

    async def _recall(self, cancelled: Sequence[Cancellation]) -> None:
        if self._retries is not None:
            await self._retries.recall(cancelled)
        waiting = 0
        for name in await existing(self._redis, self._table.names):
            parts = self._table.parts(name)
            if parts is None:
                continue
            try:
                with parts.worker.in_use():
                    async for claims in parts.queue.recall(cancelled):
                        await parts.worker.answer_expired(claims)
                        waiting += len(claims)
            except STORE_REFUSALS as error:  # a failure in one queue must not stop the others
                self._log.warning("cancellation failed", queue=name, error=explained(error))
        if waiting:
            self._log.info("queued requests cancelled", count=waiting)

    async def _cancel_held(self, parts: QueueParts) -> None:
        claims = parts.worker.held_claims()
        if claims and (held := parts.worker.cancel(await parts.queue.cancelled(claims))):
            self._log.info("claimed requests cancelled", queue=parts.queue.name, count=held)


class DepthWatch:
    """Sets the depth metrics of queues with series of their own."""

    def __init__(self, redis: Store, table: QueueTable, options: QueueOptions) -> None:
        self._redis = redis
        self._table = table
        self._options = options

    async def tick(self) -> None:
        """Measure every non-empty queue. If Redis fails, the last values stay, marked as unknown."""
        measured = [parts for parts in self._table.built.values() if parts.worker.metrics.has_own_series]
        try:
            keys = {key: parts for parts in measured for key in self._keys(parts)}
            found = await existing(self._redis, [*keys, self._options.retry_queue_name])
            is_retrying = self._options.retry_queue_name in found
            filled = {keys[key].queue.name for key in found if key in keys}
            for parts in measured:
                is_empty = parts.queue.name not in filled and not is_retrying
                if not (is_empty and parts.was_empty):
                    await self._measure(parts)
                parts.was_empty = is_empty
        except STORE_FAILURES:
            for parts in measured:
                parts.worker.metrics.depth_unknown()
                parts.was_empty = False
            raise

    def _keys(self, parts: QueueParts) -> tuple[str, ...]:
        keys = queue_keys(parts.queue.name, cluster=self._options.cluster)
        return keys.pending, keys.claimed, keys.dead

    async def _measure(self, parts: QueueParts) -> None:
        queue, metrics, now = parts.queue, parts.worker.metrics, parts.queue.now()
        found = await queue_depths(
            self._redis,
            queue.name,
            self._options.retry_queue_name,
            cluster=self._options.cluster,
            due_by=[now + bound for bound in DEADLINE_BOUNDS_SECONDS],
        )
        metrics.deadlines(found.due, found.pending)
        metrics.depth(
            found.pending,
            found.claimed,
            found.retrying,
            found.dead,
            0.0 if found.first_score is None else found.first_score - now,
            oldest_age_seconds=oldest_age_seconds(found.ends, queue.name, now),
        )


def oldest_age_seconds(members: Sequence[bytes], queue: str, now: float) -> float:
    """Age of the oldest of these members in seconds; 0 if unknown.

    The age is computed from `created`. Callers pass only the first and the last member of a queue, because reading all
    would take too long: an old first member shows a stuck queue, an old last member a starved request.
    """
    ages = [0.0]
    for member in members:
        try:
            created = decode_member(member, queue).request.created
        except InvalidRequest:
            continue
        if created is not None:
            ages.append(now - created)
    return max(ages)


async def _each(queues: Iterable[QueueParts], serve: Callable[[QueueParts], Awaitable[None]]) -> None:
    """Serve all queues, a few at a time.

    The first failing queue's error is raised when all have been served.
    """
    room = asyncio.Semaphore(_AT_ONCE)

    async def served(parts: QueueParts) -> None:
        async with room:
            with parts.worker.in_use():
                await serve(parts)

    results = await asyncio.gather(*(served(parts) for parts in list(queues)), return_exceptions=True)
    for error in results:
        if isinstance(error, BaseException):
            raise error


class PeriodicTask:
    """Calls `tick` every `interval_seconds`, counted from the end of the previous call.

    Exceptions are logged; only cancellation ends it.
    """

    def __init__(
        self,
        name: str,
        interval_seconds: float,
        tick: Callable[[], Awaitable[object]],
        log: Logger,
        failures: tuple[type[BaseException], ...],
        *,
        is_vital: bool = False,
    ) -> None:
        """Create the task. While Redis refuses a vital task, the poller is unready.

        Without a vital task, requests would be lost or wait indefinitely.
        """
        if interval_seconds <= 0:
            raise ValueError(f"{name}: expected an interval above 0, got {interval_seconds}")
        self._name = name
        self.interval_seconds = interval_seconds
        self._tick = tick
        self._log = log
        self._failures = failures
        self._is_vital = is_vital
        self._backoff = StoreBackoff(name, log, first_seconds=min(0.1, interval_seconds))

    @property
    def refusal(self) -> str:
        """Why Redis refuses this vital task, with a fix; else empty."""
        return self._backoff.refusal if self._is_vital else ""

    async def run(self) -> None:
        """Tick until cancelled; `failures` are logged once in a row."""
        while True:
            try:
                await self._tick()
            except self._failures as error:
                end_if_cancelled()
                await asyncio.sleep(self._backoff.failed(error))
            except Exception as error:  # noqa: BLE001  # a defect in one tick must not end lease keeping for all
                end_if_cancelled()
                self._log.error(f"{self._name} failed", error=repr(error))
                await self._backoff.pause()
            else:
                self._backoff.reset()
                end_if_cancelled()
            await asyncio.sleep(self.interval_seconds)
