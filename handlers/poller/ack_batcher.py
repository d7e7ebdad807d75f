"""Record settlements in Redis in batches.

Settlements that arrive during one round trip, or shortly after it, form the next batch. While Redis does not answer, a
batch is retried with backoff and never dropped. Scripts are fenced and idempotent, so a lost reply does no harm.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

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
    """Settlements of one queue; `add` never waits."""

    def __init__(self, queue: RedisQueue, log: Logger) -> None:
        self._queue = queue
        self._backoff = StoreBackoff("settling", log, queue=queue.name)
        self._waiting: list[tuple[Settlement, OnSettled]] = []
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def is_waiting_for_store(self) -> bool:
        """Whether the last attempt to record a batch failed."""
        return self._backoff.has_failed

    @property
    def refusal(self) -> str:
        """Why Redis refuses settlements, with a fix; else empty."""
        return self._backoff.refusal

    def add(self, settlement: Settlement, on_settled: OnSettled) -> None:
        """Take a settlement; `on_settled` is called once it is recorded or refused."""
        self._waiting.append((settlement, on_settled))
        self._idle.clear()
        self._arrived.set()

    async def run(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._waiting:
                count = _fitting(self._waiting)
                batch, self._waiting = self._waiting[:count], self._waiting[count:]
                await self._flush(batch)
                end_if_cancelled()
                await asyncio.sleep(_COALESCE_SECONDS)
            self._idle.set()

    async def drained(self) -> None:
        """Return when every settlement taken so far is recorded."""
        await self._idle.wait()

    async def _flush(self, batch: Sequence[tuple[Settlement, OnSettled]]) -> None:
        settlements = [settlement for settlement, _ in batch]
        acks = [one for one in settlements if isinstance(one, Ack)]
        nacks = [one for one in settlements if isinstance(one, Nack)]
        releases = [one for one in settlements if isinstance(one, Release)]
        listeners = {id(settlement): on_settled for settlement, on_settled in batch}
        if acks:
            _notify(acks, await self._tried(lambda: self._queue.ack(acks)), listeners)
        if nacks:
            _notify(nacks, await self._tried(lambda: self._queue.nack(nacks)), listeners)
        if releases:
            claims = [one.claim for one in releases]
            _notify(releases, await self._tried(lambda: self._queue.release(claims)), listeners)

    async def _tried(self, operation: Callable[[], Awaitable[list[bool]]]) -> list[bool]:
        """Retry until Redis answers; meanwhile the heartbeat renews the leases."""
        while True:
            try:
                effects = await operation()
            except (*STORE_FAILURES, MemoryError) as error:  # the reply was too large for memory: try again
                seconds = self._backoff.failed(error)
                end_if_cancelled()
                await asyncio.sleep(seconds)
            else:
                # `run` checks for a cancellation, after the listeners have been notified.
                self._backoff.reset()
                return effects


def _notify(settlements: Sequence[Settlement], effects: Sequence[bool], listeners: Mapping[int, OnSettled]) -> None:
    for settlement, has_taken_effect in zip(settlements, effects, strict=True):
        listeners[id(settlement)](settlement, has_taken_effect)


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
