"""Answers a Pub/Sub delivery once: one that was answered is acked, one that is being answered comes back later.

Push has no exactly-once delivery; a Redis remembers for it. Where that Redis does not answer, deliveries are
answered all the same: twice is better than not at all.
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
from handlers.redis_store.idempotency.deliveries import (
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
    """Asks the Redis; None where it does not say."""

    async def __call__(self, call: Awaitable[T]) -> T | None:
        """Await `call`."""


class Turn:
    """One delivery's right to be answered by us; its lease is kept until `finish` or `abandon`.

    `previous_traceparent` is the span of the attempt before, if it left one.
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
        """It is answered; `reference` names the result (the broker's id)."""
        await self._end(self._records.finish(self._key, self._owner, reference.encode()))

    async def abandon(self, traceparent: str = "") -> None:
        """It is not answered by us this time; `traceparent` is the span of what we tried, if it has one."""
        await self._end(self._records.abandon(self._key, self._owner, traceparent))

    async def _end(self, last: Awaitable[bool]) -> None:
        self._renewing.cancel()
        await self._ask(last)

    async def _renew(self) -> None:
        pause = self._records.options.lease_seconds / _RENEWALS_PER_LEASE
        # Until the end, or until another has the lease. Where the Redis does not say, it may still be ours.
        is_ours: bool | None = True
        while is_ours is not False:
            await asyncio.sleep(pause)
            is_ours = await self._ask(self._records.renew(self._key, self._owner))
            end_if_cancelled()


class Once:
    """Gives each delivery its turn, if it is its turn. `memory` hears how the Redis answers."""

    def __init__(self, records: DeliveryRecords, log: Logger, memory: Dependency) -> None:
        self._records = records
        self._log = log
        self._memory = memory

    async def begin(self, request: Request, body: bytes) -> Turn | Answer | None:
        """The turn; the answer where there is none; None where the Redis does not say."""
        key, owner = (
            delivery_key(request.id, request.request_token, body, request.queue),
            secrets.token_hex(16),
        )
        beginning = await self._ask(self._records.begin(key, owner))
        end_if_cancelled()  # nobody is there for the answer; the lease of a turn just taken ends by itself
        match beginning:
            case Fresh(previous_traceparent=previous):
                return Turn(self._records, key, owner, self._ask, previous)
            case InProgress(seconds_left=seconds):
                return plain(503, "another delivery of it is being answered", retry_after(seconds))
            case AlreadyAnswered():
                return Answer(204)
            case None:
                return None

    async def _ask(self, call: Awaitable[T]) -> T | None:
        """The Redis's word, or None and a line in the log."""
        try:
            answer = await call
        except STORE_FAILURES as error:
            self._memory.report(has_failed=True)
            self._log.warning("deliveries are not remembered", error=explained(error))
            return None
        self._memory.report(has_failed=False)
        return answer
