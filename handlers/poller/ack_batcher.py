"""Record settlements in Redis in batches.

Settlements that arrive during one round trip, or shortly after it, form the next batch. While Redis does not answer, a
batch is retried with backoff and never dropped. Scripts are fenced and idempotent, so a lost reply does no harm.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

import msgspec

from handlers.cancellation import end_if_cancelled
from handlers.contract.result import ErrorCode
from handlers.redis_store.admin.status_board import FinishedRecord, FinishedRecords
from handlers.redis_store.connection import STORE_FAILURES
from handlers.redis_store.faults import StoreBackoff
from handlers.redis_store.queue.queue import Ack, Claim, Nack, RedisQueue
from handlers.telemetry.logs import Logger


class Release(msgspec.Struct, frozen=True):
    """Returns a claim to pending, unchanged."""

    claim: Claim


Settlement = Ack | Nack | Release
OnSettled = Callable[[Settlement, bool], None]
"""Called with a settlement and whether it took effect (False: the lease had been lost)."""

_BATCH = 256
_BATCH_BYTES = 4_000_000
"""Size at which a batch is complete, so that even a slow link and a slow server handle it in time."""
_COALESCE_SECONDS: Final = 0.002
"""Pause after a batch, in which the next one grows: a batch costs half as much CPU as a request, here and in Redis."""
_TOKEN_COPIES = 3
"""Copies of the token that a settlement stores, besides its result: in Redis Cluster, one record and two commands."""


class AckBatcher:
    """Settlements of one queue; `add` never waits.

    Acks, nacks and releases are recorded independently: results are stored although Redis refuses retries.
    """

    def __init__(self, queue: RedisQueue, log: Logger) -> None:
        self._acks: _Batches[Ack] = _Batches(queue.ack, queue.name, log)
        self._nacks: _Batches[Nack] = _Batches(queue.nack, queue.name, log)
        self._releases: _Batches[Release] = _Batches(
            lambda releases: queue.release([one.claim for one in releases]), queue.name, log
        )
        self._all = (self._acks, self._nacks, self._releases)

    @property
    def is_waiting_for_store(self) -> bool:
        """Whether the last attempt to record a batch failed."""
        return any(batches.backoff.has_failed for batches in self._all)

    @property
    def refusal(self) -> str:
        """Why Redis refuses settlements, with a fix; else empty."""
        return next((batches.backoff.refusal for batches in self._all if batches.backoff.refusal), "")

    def add(self, settlement: Settlement, on_settled: OnSettled) -> None:
        """Take a settlement; `on_settled` is called once it is recorded or refused."""
        match settlement:
            case Ack():
                self._acks.add(settlement, on_settled)
            case Nack():
                self._nacks.add(settlement, on_settled)
            case Release():
                self._releases.add(settlement, on_settled)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for batches in self._all:
                tasks.create_task(batches.run())

    async def drained(self) -> None:
        """Return when every settlement taken so far is recorded."""
        await asyncio.gather(*(batches.idle.wait() for batches in self._all))


S = TypeVar("S", bound=Settlement)


class _Batches(Generic[S]):
    """Batches of one kind of settlement.

    `record` records a batch and returns for each settlement whether it took effect.
    """

    def __init__(self, record: Callable[[Sequence[S]], Awaitable[list[bool]]], queue_name: str, log: Logger) -> None:
        self._record = record
        self.backoff = StoreBackoff("settling", log, queue=queue_name)
        self._waiting: list[tuple[S, OnSettled]] = []
        self._arrived = asyncio.Event()
        self.idle = asyncio.Event()
        self.idle.set()

    def add(self, settlement: S, on_settled: OnSettled) -> None:
        self._waiting.append((settlement, on_settled))
        self.idle.clear()
        self._arrived.set()

    async def run(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._waiting:
                count = _fitting(self._waiting)
                batch, self._waiting = self._waiting[:count], self._waiting[count:]
                effects = await self._tried([settlement for settlement, _ in batch])
                for (settlement, on_settled), has_taken_effect in zip(batch, effects, strict=True):
                    on_settled(settlement, has_taken_effect)
                end_if_cancelled()
                await asyncio.sleep(_COALESCE_SECONDS)
            self.idle.set()

    async def _tried(self, settlements: Sequence[S]) -> list[bool]:
        """Retry until Redis answers; meanwhile the heartbeat renews the leases."""
        while True:
            try:
                effects = await self._record(settlements)
            except (*STORE_FAILURES, MemoryError) as error:  # the reply was too large for memory: try again
                seconds = self.backoff.failed(error)
                end_if_cancelled()
                await asyncio.sleep(seconds)
            else:
                # `run` checks for a cancellation, after the listeners have been notified.
                self.backoff.reset()
                return effects


def _fitting(waiting: Sequence[tuple[Settlement, OnSettled]]) -> int:
    """Number of settlements for the next batch, at least one."""
    size = 0
    for count, (settlement, _) in enumerate(waiting[:_BATCH], 1):
        size += size_of(settlement)
        if size >= _BATCH_BYTES:
            return count
    return min(len(waiting), _BATCH)


def size_of(settlement: Settlement) -> int:
    """Bytes that a settlement stores in Redis."""
    match settlement:
        case Ack():
            names = _TOKEN_COPIES * len(settlement.request_token)
            stored = len(settlement.stored.payload) if settlement.stored else 0
            return len(settlement.result) + len(settlement.dead or b"") + stored + names
        case Nack():
            return len(settlement.retry_member)
        case Release():
            return 0


WRITE_SECONDS: Final = 0.2
_RECORDS_BATCH: Final = 500
_MOST_WAITING: Final = 10_000
_MOST_RECORDED: Final = 4_096
"""Maximum characters of id, token and result list together; longer requests are not recorded."""


class FinishedLog:
    """Unwritten records of finished requests, at most the newest 10,000.

    A lost record only makes a later search less exact, so nothing here may delay or fail an ack.
    """

    def __init__(self, records: FinishedRecords, clock: Callable[[], float]) -> None:
        self._records = records
        self._clock = clock
        self._waiting: deque[tuple[str, FinishedRecord]] = deque(maxlen=_MOST_WAITING)

    def note(self, settlement: Settlement, has_taken_effect: bool) -> None:
        """Take a settlement. Only final ones that took effect are recorded."""
        if not has_taken_effect or not isinstance(settlement, Ack) or not settlement.request_id:
            return
        if settlement.outcome == ErrorCode.DUPLICATE or not (settlement.result or settlement.dead):
            return  # the first submission of the id has the record to keep
        results = settlement.result_queue_name if settlement.result else ""
        if len(settlement.request_id) + len(settlement.request_token) + len(results) > _MOST_RECORDED:
            return
        record = FinishedRecord(
            settlement.request_token,
            settlement.outcome,
            round(self._clock(), 3),
            settlement.claim.queue,
            results,
            settlement.dead is not None,
        )
        self._waiting.append((settlement.request_id, record))

    async def tick(self) -> None:
        """Write waiting records. Raises one of `STORE_FAILURES`; unwritten records are retried."""
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(_RECORDS_BATCH, len(self._waiting)))]
            try:
                await self._records.write(batch)
            except BaseException:
                room = _MOST_WAITING - len(self._waiting)
                self._waiting.extendleft(reversed(batch[-room:] if room else []))
                raise
