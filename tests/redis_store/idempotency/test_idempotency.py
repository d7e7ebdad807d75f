"""Records of deliveries on a real server: one of two runs, the other waits or learns of the answer."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from handlers.contract.errors import InvalidSetting
from handlers.redis_store.idempotency.idempotency import (
    DELIVERY_PREFIX,
    AlreadyAnswered,
    Beginning,
    DedupOptions,
    DeliveryRecords,
    Fresh,
    InProgress,
    cancel_deliveries,
    deliveries_cancelled_at,
    delivery_cancel_key,
    delivery_key,
)
from tests.gates.redis_server import RedisServer, running_redis


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture
async def redis(server: RedisServer) -> AsyncIterator[Redis]:
    redis = Redis.from_url(f"redis://{server.address}", socket_timeout=60, socket_connect_timeout=60)
    yield redis
    await redis.aclose()


@pytest.fixture
def records(redis: Redis) -> DeliveryRecords:
    return DeliveryRecords(redis, DedupOptions(lease_seconds=1_800, keep_seconds=7_200))


@pytest.fixture
def key() -> str:
    return delivery_key(uuid.uuid4().hex, "", b"body")


async def test_the_first_delivery_runs_and_an_overlapping_one_learns_the_remaining_time(
    records: DeliveryRecords, key: str
) -> None:
    """F61."""
    assert await records.begin(key, "a") == Fresh()
    second = await records.begin(key, "b")
    assert isinstance(second, InProgress)
    assert 0 < second.seconds_left <= 1_800


async def test_one_of_many_concurrent_deliveries_runs(records: DeliveryRecords, key: str) -> None:
    outcomes = await asyncio.gather(*(records.begin(key, str(n)) for n in range(50)))
    assert sum(isinstance(outcome, Fresh) for outcome in outcomes) == 1


async def test_an_answered_delivery_is_answered_for_all_later_ones(records: DeliveryRecords, key: str) -> None:
    """F60, F63."""
    await records.begin(key, "a")
    assert await records.finish(key, "a", b"\x00result-7")
    for owner in ("a", "b"):
        assert await records.begin(key, owner) == AlreadyAnswered(b"\x00result-7")


async def test_an_abandoned_delivery_starts_again_at_once(records: DeliveryRecords, key: str) -> None:
    await records.begin(key, "a")
    assert await records.abandon(key, "a")
    assert await records.begin(key, "b") == Fresh()


async def test_an_abandoned_attempt_leaves_its_span_for_the_next_one(
    redis: Redis, records: DeliveryRecords, key: str
) -> None:
    await records.begin(key, "a")
    assert await records.abandon(key, "a", "00-trace-span-01")
    assert not await records.abandon(key, "a", "00-trace-another-01")
    assert 0 < await redis.pttl(key) <= 1_200_000
    assert await records.begin(key, "b") == Fresh("00-trace-span-01")
    assert await records.finish(key, "b", b"1")
    assert await redis.hgetall(key) == {b"reference": b"1"}


async def test_every_call_may_be_sent_twice(records: DeliveryRecords, key: str) -> None:
    assert [await records.begin(key, "a") for _ in range(2)] == [Fresh(), Fresh()]
    assert [await records.renew(key, "a") for _ in range(2)] == [True, True]
    assert [await records.finish(key, "a", b"1") for _ in range(2)] == [True, True]
    assert not await records.finish(key, "a", b"another")
    assert await records.begin(key, "b") == AlreadyAnswered(b"1")


async def test_a_stale_owner_cannot_renew_abandon_or_finish(redis: Redis, records: DeliveryRecords, key: str) -> None:
    """F7: its lease ended and another took the delivery over."""
    await records.begin(key, "stale")
    await redis.pexpire(key, 0)
    assert await records.begin(key, "live") == Fresh()
    assert not await records.renew(key, "stale")
    assert not await records.abandon(key, "stale")
    assert not await records.finish(key, "stale", b"stale")
    assert await records.finish(key, "live", b"live")
    assert await records.begin(key, "c") == AlreadyAnswered(b"live")


async def test_an_answer_after_an_expired_lease_counts_without_a_new_owner(
    redis: Redis, records: DeliveryRecords, key: str
) -> None:
    await records.begin(key, "a")
    await redis.pexpire(key, 0)
    assert not await records.renew(key, "a")
    assert await records.finish(key, "a", b"late")
    assert await records.begin(key, "b") == AlreadyAnswered(b"late")


async def test_a_renewed_lease_lasts_from_now(redis: Redis, key: str) -> None:
    await DeliveryRecords(redis, DedupOptions(lease_seconds=100)).begin(key, "a")
    await DeliveryRecords(redis, DedupOptions(lease_seconds=500)).renew(key, "a")
    assert await redis.pttl(key) > 400_000


async def test_every_record_expires(redis: Redis, records: DeliveryRecords, key: str) -> None:
    await records.begin(key, "a")
    assert 0 < await redis.pttl(key) <= 1_800_000
    await records.finish(key, "a", b"1")
    assert 1_800_000 < await redis.pttl(key) <= 7_200_000


def test_a_later_request_with_the_same_id_is_another_delivery() -> None:
    body = b'{"id":"a","deadline":1}'
    assert delivery_key("a", "", body) == delivery_key("a", "", body)
    assert delivery_key("a", "", body) != delivery_key("a", "", b'{"id":"a","deadline":2}')
    assert delivery_key("a", "token", body) == delivery_key("a", "token", b"other bytes")


@given(st.tuples(st.text(), st.text(min_size=1)), st.tuples(st.text(), st.text(min_size=1)))
def test_no_two_requests_share_a_key_for_any_ids(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (delivery_key(*one, b"") == delivery_key(*other, b"")) == (one == other)
    assert delivery_key(*one, b"").startswith(DELIVERY_PREFIX)


@pytest.mark.parametrize("options", [{"lease_seconds": 0}, {"keep_seconds": -1}, {"lease_seconds": float("nan")}])
def test_an_impossible_time_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(InvalidSetting):
        DedupOptions(**options)


STEPS = st.lists(
    st.tuples(st.sampled_from(["begin", "renew", "finish", "abandon", "expire"]), st.sampled_from(["a", "b", "c"])),
    max_size=12,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
async def test_delivery_records_agree_with_a_model_for_any_order_of_calls(
    redis: Redis, records: DeliveryRecords, steps: list[tuple[str, str]]
) -> None:
    key = delivery_key(uuid.uuid4().hex, "", b"")
    owner, answer = "", b""
    for step, caller in steps:
        match step:
            case "begin":
                wanted: Beginning | None = AlreadyAnswered(answer) if answer else None
                if wanted is None and owner in ("", caller):
                    owner, wanted = caller, Fresh()
                got = await records.begin(key, caller)
                assert got == wanted if wanted else isinstance(got, InProgress)
            case "renew":
                assert await records.renew(key, caller) is (owner == caller)
            case "finish":
                may = answer == caller.encode() if answer else owner in ("", caller)
                assert await records.finish(key, caller, caller.encode()) is may
                if may:
                    owner, answer = "", caller.encode()
            case "abandon":
                assert await records.abandon(key, caller) is (owner == caller)
                owner = "" if owner == caller else owner
            case "expire":
                await redis.delete(key)
                owner, answer = "", b""


async def test_a_cancellation_is_known_by_its_id_and_its_time(store: Redis) -> None:
    await cancel_deliveries(store, ["a", "b:c"], 100.5)
    assert await deliveries_cancelled_at(store, ["b:c", "x", "a"]) == [100.5, None, 100.5]
    assert 0 < await store.ttl(delivery_cancel_key("a")) <= 604_800


async def test_a_value_that_is_not_a_time_cancels_nothing(store: Redis) -> None:
    await store.set(delivery_cancel_key("a"), "soon")
    assert await deliveries_cancelled_at(store, ["a"]) == [None]
