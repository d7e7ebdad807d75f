"""A delivery keeps its lease exactly while it is answered; real Valkey."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from redis.asyncio import Redis

from handlers.contract.request import Request
from handlers.doors.door import Answer
from handlers.doors.pubsub.deduplicated import AnswerLease, Once
from handlers.redis_store.idempotency.idempotency import DedupOptions, DeliveryRecords, delivery_key
from handlers.telemetry.dependencies import Dependency
from handlers.telemetry.logs import get_logger
from tests.waiting import wait_until_async

BODY = b"{}"
REQUEST = Request(id="r", payload=b"{}", deadline=1_999_999_999)


class Records(DeliveryRecords):
    """Like the library sometimes, it answers a cancellation with a reply."""

    def __init__(self, redis: Redis, lease_seconds: float = 600.0) -> None:
        super().__init__(redis, DedupOptions(lease_seconds=lease_seconds))
        self.is_hanging = False
        self.swallowed = 0
        self.reached = asyncio.Event()

    async def begin(self, key: str, owner: str) -> object:  # type: ignore[override]  # what it gives is passed on
        beginning = await super().begin(key, owner)
        await self._hang()
        return beginning

    async def renew(self, key: str, owner: str) -> bool:
        await self._hang()
        return await super().renew(key, owner)

    async def _hang(self) -> None:
        if not self.is_hanging:
            return
        self.reached.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.is_hanging = False
            self.swallowed += 1


@pytest.fixture
def records(store: Redis) -> Records:
    return Records(store)


@pytest.fixture
def soon_renewed(store: Redis) -> Records:
    """Their leases are renewed within the test, and on a busy machine they may also expire."""
    return Records(store, lease_seconds=6.0)


def renewing_tasks() -> list[asyncio.Task[object]]:
    return [task for task in asyncio.all_tasks() if "AnswerLease._renew" in repr(task)]


async def begun(records: Records) -> AnswerLease:
    turn = await Once(records, get_logger("test"), Dependency()).begin(REQUEST, BODY)
    assert isinstance(turn, AnswerLease)
    return turn


async def test_renewing_ends_with_the_lease_also_if_the_cancellation_is_swallowed(soon_renewed: Records) -> None:
    turn = await begun(soon_renewed)
    soon_renewed.is_hanging = True
    await soon_renewed.reached.wait()

    await turn.abandon()

    await wait_until_async(lambda: not renewing_tasks(), "no task left that renews")
    assert soon_renewed.swallowed == 1


async def test_a_lease_has_the_span_of_the_previous_attempt(records: Records) -> None:
    first = await begun(records)
    assert first.previous_traceparent == ""
    await first.abandon("00-trace-span-01")
    second = await begun(records)
    assert second.previous_traceparent == "00-trace-span-01"
    await second.abandon()


async def test_the_same_bytes_of_another_subscription_are_another_delivery(records: Records) -> None:
    await (await begun(records)).finish("1")
    once = Once(records, get_logger("test"), Dependency())
    assert isinstance(await once.begin(REQUEST, BODY), Answer), "the same subscription's is known"
    turn = await once.begin(msgspec.structs.replace(REQUEST, queue="sub-b"), BODY)
    assert isinstance(turn, AnswerLease)
    await turn.abandon()


async def test_renewing_ends_when_another_owner_has_the_lease(soon_renewed: Records, store: Redis) -> None:
    turn = await begun(soon_renewed)
    key = delivery_key(REQUEST.id, REQUEST.request_token, BODY, REQUEST.queue)

    async with store.pipeline(transaction=True) as both:
        both.hset(key, "owner", "another")
        both.persist(key)
        await both.execute()

    await wait_until_async(lambda: not renewing_tasks(), "no task left that renews")
    assert await store.hget(key, "owner") == b"another"
    await turn.abandon()


async def test_a_delivery_cancelled_at_its_beginning_renews_no_lease(records: Records) -> None:
    records.is_hanging = True
    beginning = asyncio.create_task(Once(records, get_logger("test"), Dependency()).begin(REQUEST, BODY))
    await records.reached.wait()

    beginning.cancel()

    with pytest.raises(asyncio.CancelledError):
        await beginning
    assert renewing_tasks() == []
