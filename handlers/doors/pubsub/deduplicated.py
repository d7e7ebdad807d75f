"""Answer a Pub/Sub message once; ack duplicates of answered messages.

Push has no exactly-once delivery, so a Redis (the dedup store) records the messages. A duplicate of an answered message
is acked, a duplicate of a message in progress is nacked. While the store is unavailable, every message is answered,
duplicates too.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable
from typing import Protocol, TypeVar

from handlers.cancellation import end_if_cancelled
from handlers.contract.request import Request
from handlers.doors.door import Answer, plain, retry_after
from handlers.redis_store.connection import STORE_FAILURES
from handlers.redis_store.faults import explained
from handlers.redis_store.idempotency.idempotency import (
    AlreadyAnswered,
    DeliveryRecords,
    Fresh,
    InProgress,
    delivery_key,
)
from handlers.telemetry.dependencies import Dependency
from handlers.telemetry.logs import Logger

_RENEWALS_PER_LEASE = 3
T = TypeVar("T")


class Ask(Protocol):
    """Calls the dedup store; None if it is unavailable."""

    async def __call__(self, call: Awaitable[T]) -> T | None:
        """Await `call`."""


class AnswerLease:
    """A lease on answering one message; renewed until `finish` or `abandon`.

    `previous_traceparent` is the span of the previous attempt, if known.
    """

    def __init__(
        self, records: DeliveryRecords, key: str, owner: str, ask: Ask, previous_traceparent: str = ""
    ) -> None:
        self.previous_traceparent = previous_traceparent
        self._records = records
        self._key = key
        self._owner = owner
        self._ask = ask
        self._renewing = asyncio.create_task(self._renew())

    async def finish(self, reference: str) -> None:
        """Record the answer; `reference` is the message id of the result."""
        await self._end(self._records.finish(self._key, self._owner, reference.encode()))

    async def abandon(self, traceparent: str = "") -> None:
        """Release the lease without an answer. The next attempt's span links to `traceparent`."""
        await self._end(self._records.abandon(self._key, self._owner, traceparent))

    async def _end(self, last: Awaitable[bool]) -> None:
        self._renewing.cancel()
        await self._ask(last)

    async def _renew(self) -> None:
        pause = self._records.options.lease_seconds / _RENEWALS_PER_LEASE
        # Renew until `_end`, or until another process has the lease. None (Redis unavailable): it may still be ours.
        is_ours: bool | None = True
        while is_ours is not False:
            await asyncio.sleep(pause)
            is_ours = await self._ask(self._records.renew(self._key, self._owner))
            end_if_cancelled()


class Once:
    """Leases each message to one delivery at a time.

    `dedup_store` receives the health of the dedup store.
    """

    def __init__(self, records: DeliveryRecords, log: Logger, dedup_store: Dependency) -> None:
        self._records = records
        self._log = log
        self._dedup_store = dedup_store

    async def begin(self, request: Request, body: bytes) -> AnswerLease | Answer | None:
        """A lease, the answer to a duplicate, or None (store unavailable)."""
        key, owner = (delivery_key(request.id, request.request_token, body, request.queue), secrets.token_hex(16))
        beginning = await self._ask(self._records.begin(key, owner))
        end_if_cancelled()  # the caller has disconnected; the new lease expires by itself
        match beginning:
            case Fresh(previous_traceparent=previous):
                return AnswerLease(self._records, key, owner, self._ask, previous)
            case InProgress(seconds_left=seconds):
                return plain(503, "another delivery of this message is in progress", retry_after(seconds))
            case AlreadyAnswered():
                return Answer(204)
            case None:
                return None

    async def _ask(self, call: Awaitable[T]) -> T | None:
        """The reply of Redis; None, with a log line, if it fails."""
        try:
            answer = await call
        except STORE_FAILURES as error:
            self._dedup_store.report(has_failed=True)
            self._log.warning("dedup store (Redis) unavailable", error=explained(error))
            return None
        self._dedup_store.report(has_failed=False)
        return answer
