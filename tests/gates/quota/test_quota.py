"""`redis-quota`: exact over processes, crashes, retries and later refusals; shared with the reference."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from handlers.contract.request import Request
from handlers.contract.result import answered_result
from handlers.forward.middleware.admission import gated
from handlers.forward.outcome import Answered, Outcome, Retry
from handlers.gates.chain import with_claim
from handlers.gates.gate import Gate, Go, Refuse
from handlers.gates.quota.leased_rate import Spread
from handlers.gates.quota.redis_quota import QuotaGate
from handlers.gates.sources import GateSources
from handlers.redis_store.limits.limits import BESIDE_QUOTA, RedisGateStore
from tests.gates.building import Clock, ReadableLog, gate, request, sources
from tests.gates.opening import started
from tests.gates.redis_server import RedisServer
from tests.redis_keys import end_leases
from tests.waiting import CLOCK_SET_SECONDS, wait_until_async

KEY = "quota:userid:alice"
HELD = "{quota:userid:alice}:held"
HELD_BY = "{quota:userid:alice}:held-by"
PAID = "{quota:userid:alice}:paid"


def rate(given: GateSources, **params: Any) -> QuotaGate:
    """A quota with long leases, because a gate that is not started renews none."""
    built = gate("redis-quota", {"address": "a", "limit": 3, "lease_seconds": 600, **params}, given)
    assert isinstance(built, QuotaGate)
    return built


def concurrency(given: GateSources, **params: Any) -> QuotaGate:
    return rate(given, mode="concurrency", **params)


async def go(built: Gate, request_id: str, token: str = "t") -> Go:
    verdict = await built.admit(request(request_id, token=token))
    assert isinstance(verdict, Go), verdict
    return verdict


def _same(store: RedisGateStore, _address: str) -> RedisGateStore:
    return store


@pytest.fixture
async def pollers(redis_server: RedisServer, redis: Redis) -> AsyncIterator[list[GateSources]]:
    """Ten processes' worth of connections to one server."""
    clients = [
        Redis.from_url(f"redis://{redis_server.address}", max_connections=16, socket_timeout=60) for _ in range(10)
    ]
    stores = [RedisGateStore(client) for client in clients]
    yield [sources(stores=partial(_same, store)) for store in stores]
    for client in clients:
        await client.aclose()


# --- rate


async def test_over_the_rate_requests_are_refused_with_the_time_until_a_unit_is_free(
    from_redis: GateSources,
) -> None:
    built = rate(msgspec.structs.replace(from_redis, clock=Clock()), window="40s")
    for number in range(3):
        await go(built, str(number))
    verdict = await built.admit(request("one more"))
    assert isinstance(verdict, Refuse)
    assert 0 < verdict.delay_seconds <= 40
    second = await built.admit(request("and another"))
    assert isinstance(second, Refuse)
    assert second.delay_seconds >= verdict.delay_seconds + 12, "one after the other, not all at once"


async def test_a_unit_is_free_again_after_the_window(redis: Redis, from_redis: GateSources) -> None:
    built = rate(from_redis, limit=1)
    await go(built, "a")
    assert isinstance(await built.admit(request("b")), Refuse)
    await end_leases(redis, KEY)
    await go(built, "b")


async def test_a_retried_request_takes_one_unit(redis: Redis, from_redis: GateSources) -> None:
    built = rate(from_redis)
    for _ in range(5):
        await (await go(built, "a")).reservation.release()
    assert await redis.zcard(KEY) == 1


async def test_a_retry_after_the_window_takes_no_second_unit(redis: Redis, from_redis: GateSources) -> None:
    built = rate(from_redis, limit=1)
    await (await go(built, "a")).reservation.release()
    await end_leases(redis, KEY)
    await go(built, "b")
    await go(built, "a")
    assert await redis.zcard(KEY) == 1


async def test_a_request_that_was_not_sent_gets_its_unit_back(redis: Redis, from_redis: GateSources) -> None:
    built = rate(from_redis, limit=1)
    for number in range(5):
        await (await go(built, str(number))).reservation.give_back()
    assert await redis.exists(KEY, PAID) == 0


async def test_a_retry_that_was_not_sent_keeps_the_unit_of_its_first_attempt(
    redis: Redis, from_redis: GateSources
) -> None:
    built = rate(from_redis, limit=1)
    await (await go(built, "a")).reservation.release()
    await (await go(built, "a")).reservation.give_back()
    assert isinstance(await built.admit(request("b")), Refuse)


async def test_a_later_submission_of_the_same_id_takes_another_unit(from_redis: GateSources) -> None:
    built = rate(from_redis, limit=1)
    await go(built, "a", token="first")
    assert isinstance(await built.admit(request("a", token="second")), Refuse)
    assert isinstance(await built.admit(request("a", token="", deadline=2e9)), Refuse)


async def test_the_reference_counts_in_the_same_window(redis: Redis, from_redis: GateSources) -> None:
    built = rate(from_redis, window="60s")
    now = time.time_ns()
    for back in (1, 2):
        await redis.zadd(KEY, {str(now - back): now - back})
    await redis.zadd(KEY, {"old": now - 61_000_000_000})
    await go(built, "a")
    assert isinstance(await built.admit(request("b")), Refuse)
    assert await redis.zcard(KEY) == 3
    pairs: list[tuple[bytes, float]] = await redis.zrange(KEY, 0, -1, withscores=True)  # type: ignore[assignment]  # so with scores
    (written,) = {score for _, score in pairs} - {float(now - 2), float(now - 1)}
    assert written == pytest.approx(now, abs=CLOCK_SET_SECONDS * 1e9), "nanoseconds, as the reference writes them"


async def test_many_processes_never_pass_the_rate_together(redis: Redis, pollers: list[GateSources]) -> None:
    gates = [rate(given, limit=25) for given in pollers]
    verdicts = await asyncio.gather(*(gates[n % 10].admit(request(str(n))) for n in range(200)))
    assert sum(isinstance(verdict, Go) for verdict in verdicts) == 25
    assert await redis.zcard(KEY) == 25


async def test_every_key_of_a_quota_expires(redis: Redis, from_redis: GateSources) -> None:
    await go(rate(from_redis), "a")
    await redis.rename(KEY, "rate")
    await go(concurrency(from_redis), "b")
    assert len(await redis.keys("*")) == 5
    for key in await redis.keys("*"):
        assert 0 < await redis.ttl(key) < 3600, key


# --- payment


@pytest.mark.parametrize("mode", ["rate-limit", "concurrency"])
@pytest.mark.parametrize("token", ["", "t"])
async def test_requests_with_equal_names_each_count_against_the_quota(
    from_redis: GateSources, mode: str, token: str
) -> None:
    """The producer chooses id, token and deadline; equal ones let any number of requests run on one payment."""
    built = rate(from_redis, limit=1, mode=mode, window="60s")
    same = msgspec.structs.replace(request("a", token=token), deadline=time.time() + 600)
    sent: list[str] = []

    async def send(one: Request) -> Outcome:
        sent.append(one.claim)
        await others_are_over.wait()
        return Answered(answered_result("a", "", 200, b"{}"))

    outcomes: list[Outcome] = []
    others_are_over = asyncio.Event()

    async def run(number: int) -> None:
        one = msgspec.structs.replace(same, payload=b'{"n":%d}' % number, attempt=number)
        outcomes.append(await gated(one, [built], send))
        if len(outcomes) == 49:
            others_are_over.set()

    await asyncio.gather(*(run(number) for number in range(50)))
    assert len(sent) == 1
    assert sum(isinstance(outcome, Retry) for outcome in outcomes) == 49


@pytest.mark.parametrize("mode", ["rate-limit", "concurrency"])
async def test_a_long_tenant_makes_no_long_key(redis: Redis, from_redis: GateSources, mode: str) -> None:
    built = rate(from_redis, limit=1, mode=mode, window="60s", lease_seconds=60)
    for sign in "xé":
        assert isinstance(await built.admit(with_claim(request("a", user=sign * 300))), Go)
        assert isinstance(await built.admit(with_claim(request("b", user=sign * 300))), Refuse), "it counts"
    assert isinstance(await built.admit(with_claim(request("c", user="x" * 301))), Go), "another tenant"
    keys = await redis.keys("*")
    assert keys
    assert all(len(key) < 400 and b"xxx" not in key for key in keys)
    lives = [await redis.ttl(key) for key in keys]
    assert max(lives) <= 120, "no longer than the quota needs, whatever the deadline"


@pytest.mark.parametrize(("prefix", "victim"), [("{q}:", "bob"), ("quota:", "{bob}")])
@pytest.mark.parametrize("beside", BESIDE_QUOTA)
async def test_no_tenant_is_counted_in_a_key_beside_another_tenants(
    redis: Redis, from_redis: GateSources, prefix: str, victim: str, beside: str
) -> None:
    """A hash tag in the prefix or in the tenant's name puts the suffix of such a key at its end."""

    async def admitted(quota: QuotaGate, tenant: str) -> int:
        claims = [with_claim(msgspec.structs.replace(request(tenant), metadata={"userid": tenant})) for _ in range(3)]
        return sum([isinstance(await quota.admit(claim), Go) for claim in claims])

    for quota in (made(from_redis, limit=2, prefix=prefix) for made in (rate, concurrency)):
        for first, second in ((victim + beside, victim), (victim, victim + beside)):
            await redis.flushall()
            assert [await admitted(quota, first), await admitted(quota, second)] == [2, 2]


async def test_the_number_of_remembered_tenants_is_bounded() -> None:
    clock = Clock(1_000.0)
    spread = Spread(1.0, clock)
    assert spread.delay("first", 5.0) == 5.0
    for number in range(10_000):
        spread.delay(f"tenant {number}", 60.0)
    assert len(spread) == 10_000
    assert spread.delay("first", 5.0) == 5.0, "the one that asked longest ago was forgotten"
    assert spread.delay("tenant 9999", 5.0) >= 30.0, "one that asked lately is known"


# --- labels and missing things


@pytest.mark.parametrize("mode", ["rate-limit", "concurrency"])
async def test_classifying_never_refuses_and_labels(from_redis: GateSources, mode: str) -> None:
    built = rate(from_redis, limit=2, mode=mode, gating_mode="classifying")
    labels = [dict((await go(built, str(number))).labels) for number in range(4)]
    assert labels == [{"classification": "reserved"}] * 2 + [{"classification": "overflow"}] * 2


async def test_a_request_without_the_attribute_has_no_quota(redis: Redis, from_redis: GateSources) -> None:
    built = rate(from_redis, limit=1, attribute="team")
    for number in range(3):
        await go(built, str(number))
    assert await redis.keys("*") == []


@pytest.mark.parametrize(
    ("params", "expected"), [({}, Refuse), ({"on_missing": "open"}, Go), ({"gating_mode": "classifying"}, Go)]
)
async def test_an_unavailable_redis_is_reported_and_on_missing_holds(
    from_impatient: GateSources, redis_server: RedisServer, params: dict[str, Any], expected: type
) -> None:
    built = rate(from_impatient, **params)
    with redis_server.paused():
        verdict = await built.admit(request())
        assert isinstance(verdict, expected)
        if isinstance(verdict, Go):
            assert verdict.labels.get("classification", "overflow") == "overflow"
        assert not built.state().is_source_available

    async def is_back() -> bool:
        return await admitted(built, "after") and built.state().is_source_available

    await wait_until_async(is_back, "the source to be available")
    assert isinstance(from_impatient.log, ReadableLog)
    assert len(from_impatient.log.lines_of("gate on_missing applied")) == 1


# --- concurrency


async def test_slots_are_freed_however_a_request_ends(redis: Redis, from_redis: GateSources) -> None:
    built = concurrency(from_redis)
    first, second, third = [await go(built, name) for name in "abc"]
    assert isinstance(await built.admit(request("d")), Refuse)
    assert await redis.get(KEY) == b"3"
    await first.reservation.release()
    await second.reservation.give_back()
    assert await redis.get(KEY) == b"1"
    await third.reservation.release()
    await third.reservation.release()
    assert await redis.exists(KEY, HELD, HELD_BY) == 0


async def test_requests_without_a_slot_get_retry_times_spread_by_the_mean_duration(redis: Redis) -> None:
    """Otherwise a deep queue of one tenant, retried every second, would occupy the poller."""
    clock, store = Clock(time.time()), RedisGateStore(redis)
    given = sources(stores=lambda address: store, clock=clock)
    built = concurrency(given, limit=2)
    for number in range(60):
        held = await go(built, str(number))
        clock.now += 10
        await held.reservation.release()
    for number in range(2):
        await go(built, f"long {number}")
    delays = []
    for number in range(4):
        verdict = await built.admit(request(f"late {number}"))
        assert isinstance(verdict, Refuse)
        delays.append(verdict.delay_seconds)
    gaps = [later - sooner for sooner, later in itertools.pairwise(delays)]
    assert gaps == [pytest.approx(4, rel=0.05)] * 3, "10 s, two at a time, a little sooner"


async def test_the_counter_is_shared_with_the_reference(redis: Redis, from_redis: GateSources) -> None:
    built = concurrency(from_redis)
    await redis.set(KEY, 2)
    mine = await go(built, "a")
    assert await redis.get(KEY) == b"3"
    assert isinstance(await built.admit(request("b")), Refuse)
    await redis.decr(KEY)
    await go(built, "b")
    await mine.reservation.release()
    assert await redis.get(KEY) == b"2"


async def test_a_lost_counter_is_rebuilt_from_the_held_slots(redis: Redis, from_redis: GateSources) -> None:
    built = concurrency(from_redis)
    for name in "abc":
        await go(built, name)
    await redis.delete(KEY)
    assert isinstance(await built.admit(request("d")), Refuse)
    assert await redis.get(KEY) == b"3"


async def test_slots_of_a_killed_owner_are_free_when_their_leases_expire(
    redis: Redis, pollers: list[GateSources]
) -> None:
    killed, alive = (concurrency(given) for given in pollers[:2])
    for name in "abc":
        await go(killed, name)
    assert isinstance(await alive.admit(request("d")), Refuse)
    await end_leases(redis, HELD)
    await go(alive, "d")
    assert await redis.zrange(HELD, 0, -1) == [b"d\x00t"]
    assert await redis.get(KEY) == b"1"


async def admitted(built: Gate, request_id: str) -> bool:
    return isinstance(await built.admit(request(request_id, token="t")), Go)


async def test_a_living_owner_keeps_its_slots_beyond_their_lease(redis: Redis, from_redis: GateSources) -> None:
    params = {"address": "a", "limit": 1, "mode": "concurrency", "lease_seconds": 6}
    async with started("redis-quota", params, from_redis) as built:
        mine = await go(built, "a")
        first_end = await redis.zscore(HELD, "a\x00t")
        assert first_end is not None

        async def is_renewed_and_held() -> bool:
            """A process that stood still may lose the slot until it renews again."""
            if (await redis.zscore(HELD, "a\x00t") or 0) <= first_end:
                return False
            verdict = await built.admit(request("b"))
            if isinstance(verdict, Go):
                await verdict.reservation.release()
            return isinstance(verdict, Refuse)

        await wait_until_async(is_renewed_and_held, "a later end of the lease")
        await mine.reservation.release()
        # A renewal that was on its way may take the slot again and then frees it.
        await wait_until_async(lambda: admitted(built, "b"), "the slot to be free")


async def test_a_request_of_a_crashed_owner_holds_one_slot_which_the_old_owner_cannot_free(
    redis: Redis, pollers: list[GateSources]
) -> None:
    before, after = (concurrency(given, limit=1) for given in pollers[:2])
    old = await go(before, "a")
    new = await go(after, "a")
    assert await redis.get(KEY) == b"1"
    await old.reservation.release()
    assert await redis.get(KEY) == b"1"
    await new.reservation.release()
    assert await redis.exists(KEY) == 0


async def test_a_slot_whose_lease_expired_is_counted_again_when_its_owner_renews(
    redis: Redis, from_redis: GateSources
) -> None:
    built = concurrency(from_redis, limit=1)
    other = concurrency(from_redis, limit=1)
    sleeper = await go(built, "a")
    await end_leases(redis, HELD)
    await go(other, "b")
    assert await redis.get(KEY) == b"1"
    await redis.incr(KEY)  # the reference's, which only the counter knows
    await built.renew()
    assert await redis.get(KEY) == b"3", "all three are in flight"
    await sleeper.reservation.release()
    assert await redis.get(KEY) == b"2"


class SlowToRenew(RedisGateStore):
    """A renewal that is on its way until a test lets it arrive."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis)
        self.may_arrive = asyncio.Event()

    async def renew_slots(self, *slots: Any, **times: Any) -> None:
        await self.may_arrive.wait()
        await super().renew_slots(*slots, **times)


async def test_a_slot_freed_during_its_renewal_stays_free(redis: Redis) -> None:
    store = SlowToRenew(redis)
    built = concurrency(sources(stores=lambda address: store))
    mine, kept = await go(built, "a"), await go(built, "b")
    renewing = asyncio.create_task(built.renew())
    await asyncio.sleep(0)
    await mine.reservation.release()
    store.may_arrive.set()
    await renewing
    assert await redis.get(KEY) == b"1"
    assert await redis.zrange(HELD, 0, -1) == [b"b\x00t"]
    await kept.reservation.release()


async def test_many_processes_and_crashes_never_pass_the_limit_and_leave_nothing_behind(
    redis: Redis, pollers: list[GateSources]
) -> None:
    """Counts concurrent requests. A crash loses its slot, and its request ends at that moment."""
    rng = random.Random(11)
    gates = [concurrency(given, limit=4) for given in pollers]
    crashed: list[str] = []
    running = most = sent = 0

    async def serve(number: int) -> None:
        nonlocal running, most, sent
        built = gates[number % 10]
        while not isinstance(verdict := await built.admit(request(str(number), token="t")), Go):
            while crashed:
                await redis.zadd(HELD, {f"{crashed.pop()}\x00t": 1}, xx=True)  # its lease ends
            await asyncio.sleep(0)
        running += 1
        sent += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        if rng.random() > 0.1:
            await verdict.reservation.release()
        else:
            crashed.append(str(number))

    await asyncio.gather(*(serve(number) for number in range(60)))
    assert (sent, most <= 4) == (60, True)
    await end_leases(redis, HELD)
    await go(gates[0], "last")
    assert await redis.zrange(HELD, 0, -1) == [b"last\x00t"]
    assert await redis.get(KEY) == b"1"


@pytest.mark.parametrize("tenant", ["a:b", "{x}", "a b", "ü", "a{b", "*"])
async def test_tenants_of_any_name_have_separate_quotas(redis: Redis, from_redis: GateSources, tenant: str) -> None:
    built = concurrency(from_redis, limit=1)
    assert isinstance(await built.admit(request("a", user=tenant)), Go)
    assert isinstance(await built.admit(request("b", user=tenant)), Refuse)
    assert isinstance(await built.admit(request("c", user=f"{tenant}2")), Go)
