"""`redis`: a budget that another program writes."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis

from handlers.gates.sources import GateSources
from tests.gates.building import ReadableLog
from tests.gates.opening import started, until_budget
from tests.gates.redis_server import RedisServer
from tests.waiting import wait_until_async

KEY = "dispatch-gate-budget"


@pytest.mark.parametrize(("written", "budget"), [("0.25", 0.25), ("1", 1), ("7", 1), ("-3", 0), ("0", 0)])
async def test_the_number_is_the_budget_clamped(
    redis: Redis, from_redis: GateSources, written: str, budget: float
) -> None:
    await redis.set(KEY, written)
    async with started("redis", {"address": "a"}, from_redis) as built:
        assert built.budget() == budget
        assert built.shares()[0].part == budget


async def test_the_budget_follows_the_configured_key(redis: Redis, from_redis: GateSources) -> None:
    async with started("redis", {"address": "a", "budget_key": "mine"}, from_redis) as built:
        await until_budget(built, 1.0, "a missing key opens")
        await redis.set("mine", "0.4")
        await until_budget(built, 0.4, "written")
        await redis.delete("mine")
        await until_budget(built, 1.0, "deleted again")


@pytest.mark.parametrize(
    ("params", "budget"), [({"on_missing": "closed"}, 0.0), ({"on_missing": "open"}, 1.0), ({}, 1.0)]
)
async def test_on_missing_holds_for_a_missing_key(
    from_redis: GateSources, params: dict[str, Any], budget: float
) -> None:
    async with started("redis", {"address": "a", **params}, from_redis) as built:
        assert built.budget() == budget


@pytest.mark.parametrize(
    ("params", "budget"), [({}, 0.0), ({"on_missing": "open"}, 1.0), ({"on_missing": "hold"}, 0.6)]
)
async def test_an_unavailable_redis_is_reported_and_on_missing_holds(
    redis: Redis,
    redis_server: RedisServer,
    from_impatient: GateSources,
    params: dict[str, Any],
    budget: float,
) -> None:
    await redis.set(KEY, "0.6")
    async with started("redis", {"address": "a", **params}, from_impatient) as built:
        await until_budget(built, 0.6, "read")
        with redis_server.paused():
            await wait_until_async(lambda: built.state().on_missing, "the source to be missing")
            assert built.budget() == budget
        await wait_until_async(lambda: not built.state().on_missing, "the source to be read again")
        await until_budget(built, 0.6, "read again")
    assert isinstance(from_impatient.log, ReadableLog)
    assert from_impatient.log.lines_of("gate source lost")[0]["reason"] == "TimeoutError"


@pytest.mark.parametrize("value", ["0", "-0.5"])
async def test_a_budget_of_zero_is_the_reason_of_a_closed_gate(
    redis: Redis, from_redis: GateSources, value: str
) -> None:
    await redis.set(KEY, value)
    async with started("redis", {"address": "a"}, from_redis) as built:
        assert built.state().why_closed == f"reads {value}, closes at 0"


async def test_a_key_that_holds_no_number_is_missing(redis: Redis, from_redis: GateSources) -> None:
    await redis.set(KEY, "lots")
    async with started("redis", {"address": "a"}, from_redis) as built:
        assert built.budget() == 0.0
        assert "not a number" in built.state().why_closed
