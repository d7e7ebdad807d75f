"""`redis-leased-rate`: the controller's rate, over all processes, only while its lease lasts."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from handlers.contract.errors import InvalidSetting
from handlers.gates.gate import Gate, Go, Refuse
from handlers.gates.sources import GateSources
from tests.gates.building import Clock, gate, request
from tests.gates.opening import started, until_budget
from tests.gates.redis_server import RedisServer
from tests.waiting import wait_until_async

CONTROL = "rate:pool-a"
STATE = "rate:pool-a:state"
PARAMS = {"address": "a", "control_key": CONTROL, "pool": "pool-a"}


async def lease(redis: Redis, rate: str, *, seconds: float = 600, **changes: str) -> None:
    """The lease, as a controller writes it."""
    fields = {
        "api_version": "llm-d.ai/v1alpha1",
        "pool_id": "pool-a",
        "max_admission_rps": rate,
        "valid_until_unix_ms": str(int((time.time() + seconds) * 1000)),
        "decision_id": "d1",
        **changes,
    }
    await redis.delete(CONTROL)
    await redis.hset(CONTROL, mapping={name: value for name, value in fields.items() if value != "-"})


async def admitted(built: Gate, count: int) -> int:
    verdicts = await asyncio.gather(*(built.admit(request(str(n))) for n in range(count)))
    return sum(isinstance(verdict, Go) for verdict in verdicts)


async def test_a_burst_is_sent_at_once_and_the_rest_gets_a_delay(redis: Redis, from_redis: GateSources) -> None:
    await lease(redis, "0.04")
    # More than a burst, and a time ahead of the server's, so that no time fills the bucket again.
    await redis.hset(STATE, mapping={"tokens": "9", "last_ms": str(int(time.time() * 1000) + 3_600_000)})
    built = gate("redis-leased-rate", {**PARAMS, "burst": "100s"}, replace(from_redis, clock=Clock()))
    assert await admitted(built, 4) == 4
    refused = [await built.admit(request("x")), await built.admit(request("y"))]
    delays = [verdict.delay_seconds for verdict in refused if isinstance(verdict, Refuse)]
    assert delays == [pytest.approx(25), pytest.approx(50)]


@pytest.mark.parametrize(("named", "owner"), [({"pool": "pool-a"}, "b"), ({"pool_id": "pool-a"}, "b"), ({}, "pool-a")])
async def test_without_a_name_the_lease_is_for_the_pool_whose_gate_it_is(
    redis: Redis, from_redis: GateSources, named: dict[str, Any], owner: str
) -> None:
    await lease(redis, "0.001")
    parameters = {"address": "a", "control_key": CONTROL, "burst_seconds": 3_000, **named}
    built = gate("redis-leased-rate", parameters, replace(from_redis, owner_pool=owner))
    assert await admitted(built, 5) == 3


@pytest.mark.parametrize("twice", [{"pool_id": "pool-a"}, {"burst": 1, "burst_seconds": 1}])
def test_both_names_of_one_parameter_are_refused(from_redis: GateSources, twice: dict[str, Any]) -> None:
    with pytest.raises(InvalidSetting, match="expected one of the two"):
        gate("redis-leased-rate", {**PARAMS, **twice}, from_redis)


async def test_the_bucket_fills_at_the_leased_rate(redis: Redis, from_redis: GateSources) -> None:
    await lease(redis, "0.001")
    built = gate("redis-leased-rate", {**PARAMS, "burst": "1h"}, from_redis)
    assert await admitted(built, 5) == 3
    await redis.hincrby(STATE, "last_ms", -1_500_000)  # after 1,500 s: 1.5 tokens, and 0.6 remained
    assert await admitted(built, 5) == 2


async def test_all_processes_share_one_bucket(redis: Redis, from_redis: GateSources) -> None:
    await lease(redis, "0.001")
    gates = [gate("redis-leased-rate", {**PARAMS, "burst": "1h"}, from_redis) for _ in range(5)]
    assert sum(await asyncio.gather(*(admitted(built, 4) for built in gates))) == 3


async def test_a_request_that_was_not_sent_returns_its_token(redis: Redis, from_redis: GateSources) -> None:
    await lease(redis, "0.001")
    built = gate("redis-leased-rate", PARAMS, from_redis)
    for number in range(3):
        verdict = await built.admit(request(str(number)))
        assert isinstance(verdict, Go)
        await verdict.reservation.give_back()
    sent = await built.admit(request("sent"))
    assert isinstance(sent, Go)
    await sent.reservation.release()
    assert isinstance(await built.admit(request("late")), Refuse)


async def test_returned_tokens_do_not_overfill_the_bucket(redis: Redis, from_redis: GateSources) -> None:
    await lease(redis, "0.001")
    built = gate("redis-leased-rate", PARAMS, from_redis)
    verdict = await built.admit(request())
    assert isinstance(verdict, Go)
    for _ in range(5):
        await verdict.reservation.give_back()
    assert await admitted(built, 5) == 1


@pytest.mark.parametrize(
    ("rate", "changes"),
    [
        ("5", {"pool_id": "pool-b"}),
        ("5", {"api_version": "llm-d.ai/v2"}),
        ("5", {"decision_id": "-"}),
        ("5", {"decision_id": ""}),
        ("5", {"valid_until_unix_ms": "1000"}),
        ("5", {"valid_until_unix_ms": "soon"}),
        ("-1", {}),
        ("many", {}),
        ("inf", {}),
        ("nan", {}),
        ("0", {}),
    ],
)
async def test_an_invalid_lease_closes_the_gate(
    redis: Redis, from_redis: GateSources, rate: str, changes: dict[str, Any]
) -> None:
    await lease(redis, rate, **changes)
    async with started("redis-leased-rate", PARAMS, from_redis) as built:
        assert (built.budget(), built.room()) == (0.0, 0)
        assert isinstance(await built.admit(request()), Refuse)
        assert built.state().why_closed


async def test_the_gate_is_open_only_during_a_lease(redis: Redis, from_redis: GateSources) -> None:
    async with started("redis-leased-rate", PARAMS, from_redis) as built:
        assert built.budget() == 0.0
        assert built.state().why_closed == "no valid lease"
        await lease(redis, "5")
        await until_budget(built, 1.0, "leased")
        assert isinstance(await built.admit(request()), Go)
        await lease(redis, "5", seconds=0)
        await until_budget(built, 0.0, "the lease ended")
        assert isinstance(await built.admit(request()), Refuse)


async def test_an_unavailable_redis_closes_the_gate(
    redis: Redis, redis_server: RedisServer, from_impatient: GateSources
) -> None:
    await lease(redis, "5")
    async with started("redis-leased-rate", PARAMS, from_impatient) as built:
        await until_budget(built, 1.0, "leased")
        with redis_server.paused():
            assert isinstance(await built.admit(request()), Refuse)
            await until_budget(built, 0.0, "the source is missing")
        await until_budget(built, 1.0, "read again")
        await wait_until_async(lambda: admitted(built, 1), "a request to be admitted")


async def test_a_server_whose_clock_went_back_does_not_fill_the_same_time_twice(
    redis: Redis, from_redis: GateSources
) -> None:
    await lease(redis, "5")
    await redis.hset(STATE, mapping={"tokens": "0", "last_ms": str(int(time.time() * 1000) + 3_600_000)})
    built = gate("redis-leased-rate", PARAMS, from_redis)
    assert isinstance(await built.admit(request()), Refuse)
    assert float((await redis.hget(STATE, "tokens")) or "nan") == 0
