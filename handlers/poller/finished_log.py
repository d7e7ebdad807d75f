"""Collects records of finished requests and writes them in batches, apart from the acks themselves."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from handlers.contract.result import ErrorCode
from handlers.poller.ack_batcher import Settlement
from handlers.redis_store.admin.finished import FinishedRecord, FinishedRecords
from handlers.redis_store.queue.queue import Ack

WRITE_SECONDS: Final = 0.2
_BATCH: Final = 500
_MOST_WAITING: Final = 10_000


class FinishedLog:
    """Keeps what is not written yet, at most 10,000 records: the oldest are dropped while Redis is unavailable.

    Losing a record only makes a later search less exact, so nothing here may slow down or fail an ack.
    """

    def __init__(self, records: FinishedRecords, clock: Callable[[], float]) -> None:
        self._records = records
        self._clock = clock
        self._waiting: deque[tuple[str, FinishedRecord]] = deque(maxlen=_MOST_WAITING)

    def note(self, settlement: Settlement) -> None:
        """Take a settlement that took effect; only final ones are recorded."""
        if not isinstance(settlement, Ack) or not settlement.request_id:
            return
        if settlement.outcome == ErrorCode.DUPLICATE or not (settlement.result or settlement.dead):
            return  # another submission of the id stands for it: that one's record is the one to keep
        results = settlement.result_queue_name if settlement.result else ""
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
        """Write what is waiting. Raises one of `STORE_FAILURES`; what was not written is tried again."""
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
            try:
                await self._records.write(batch)
            except BaseException:
                room = _MOST_WAITING - len(self._waiting)
                self._waiting.extendleft(reversed(batch[-room:] if room else []))
                raise
