"""Cancellations of deliveries: by id, with their time, for a week."""

from __future__ import annotations

from redis.asyncio import Redis

from handlers.redis_store.idempotency.delivery_cancellations import (
    cancel_deliveries,
    deliveries_cancelled_at,
    delivery_cancel_key,
)


async def test_a_cancellation_is_known_by_its_id_and_its_time(store: Redis) -> None:
    await cancel_deliveries(store, ["a", "b:c"], 100.5)
    assert await deliveries_cancelled_at(store, ["b:c", "x", "a"]) == [100.5, None, 100.5]
    assert 0 < await store.ttl(delivery_cancel_key("a")) <= 604_800


async def test_what_is_no_time_cancels_nothing(store: Redis) -> None:
    await store.set(delivery_cancel_key("a"), "soon")
    assert await deliveries_cancelled_at(store, ["a"]) == [None]
