"""Duplicate deliveries are answered once with a dedup store; the door is a process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from redis.asyncio import Redis

from handlers.client import AsyncClient
from handlers.demo.valkey import Valkey
from tests.servers.forked import LONG_REDIS_TIMEOUT
from tests.servers.valkey import LONG_LIMIT
from tests.waiting import wait_until_async
from tests.way.push_rig import PROJECT, Rig, open_door, open_rig


@pytest.fixture
async def store(valkey: Valkey) -> AsyncIterator[Redis]:
    """An empty dedup store."""
    async with Redis.from_url(valkey.url, socket_timeout=60) as client:
        await client.flushall()
        yield client


@pytest.fixture
def settings(valkey: Valkey, store: Redis) -> dict[str, str]:
    del store  # emptied the server
    return {
        "DEDUPE_REDIS_URL": valkey.url,
        "LEASE_SECONDS": "300",
        "HEARTBEAT_SECONDS": "0.3",
        **LONG_REDIS_TIMEOUT,
    }


@pytest.fixture
async def rig(settings: dict[str, str]) -> AsyncIterator[Rig]:
    async with open_rig(**settings) as running:
        yield running


async def record_of(store: Redis, request_id: str) -> str:
    """The key that holds the lease of a delivery."""
    (key,) = [name async for name in store.scan_iter(f"delivery:*{request_id}*")]
    return str(key.decode())


async def held_at_the_gateway(rig: Rig, request_id: str) -> asyncio.Task[httpx.Response]:
    """Push a request that the gateway receives and does not answer while it holds."""
    rig.gateway.is_holding = True
    pushed = asyncio.create_task(rig.push(request_id))
    await wait_until_async(lambda: rig.asked() == 1, "the request at the gateway")
    return pushed


async def test_a_delivery_that_was_answered_is_acked_without_a_second_inference(rig: Rig) -> None:
    first = await rig.push("once")
    second = await rig.push("once")

    assert (first.status_code, second.status_code) == (204, 204)
    assert rig.asked() == 1


async def test_a_cancelled_delivery_is_answered_and_the_gateway_is_free(rig: Rig, valkey: Valkey) -> None:
    pushed = await held_at_the_gateway(rig, "cancelled")

    async with AsyncClient.for_pubsub(
        PROJECT, emulator_host=rig.broker.host, cancel_redis_url=valkey.url, cancel_redis_access=LONG_LIMIT
    ) as producer:
        await producer.cancel("cancelled")

    assert (await pushed).status_code == 204
    rig.gateway.is_holding = False
    await wait_until_async(lambda: rig.gateway.open_connections == 0, "the connection to be closed")


async def test_one_of_two_concurrent_deliveries_is_answered_and_the_other_redelivered(rig: Rig) -> None:
    rig.gateway.is_holding = True
    both = [asyncio.create_task(rig.push("twice")) for _ in range(2)]
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    rig.gateway.is_holding = False

    assert sorted([(await one).status_code for one in both]) == [204, 503]
    assert rig.asked() == 1


async def test_a_duplicate_of_a_long_request_is_nacked_because_the_lease_is_renewed(
    settings: dict[str, str], store: Redis
) -> None:
    """F61. A lease is renewed after a third of it; the rest is for a busy machine."""
    async with open_rig(**settings | {"LEASE_SECONDS": "24"}) as rig:
        first = await held_at_the_gateway(rig, "long")
        key = await record_of(store, "long")
        ends = await store.pexpiretime(key)

        async def is_renewed() -> bool:
            return await store.pexpiretime(key) > ends

        await wait_until_async(is_renewed, "a later end of its lease")

        copy = await rig.push("long")
        rig.gateway.is_holding = False

        assert (copy.status_code, (await first).status_code) == (503, 204)
        assert rig.asked() == 1


async def test_a_delivery_of_a_killed_door_is_answered_by_another_when_its_lease_ends(
    rig: Rig, settings: dict[str, str], store: Redis
) -> None:
    """F2."""
    pushed = await held_at_the_gateway(rig, "orphan")
    async with open_door(rig.broker, rig.gateway, **settings) as other:
        assert (await other.push("orphan")).status_code == 503, "its owner lives"
        rig.door.process.kill()
        with pytest.raises(httpx.TransportError):
            await pushed
        rig.gateway.is_holding = False
        assert await store.pexpire(await record_of(store, "orphan"), 1), "the lease ends now, not in seconds"

        async def is_answered() -> bool:
            return (await other.push("orphan")).status_code == 204

        await wait_until_async(is_answered, "the other door to answer it")
    assert rig.asked() == 2


async def test_every_delivery_of_a_burst_is_recorded(settings: dict[str, str]) -> None:
    """F60: more at once than there are connections to the dedup store."""
    names = [f"burst-{number}" for number in range(90)]
    async with open_rig(**settings) as rig:
        first = await asyncio.gather(*(rig.push(name) for name in names))
        asked = rig.asked()
        second = await asyncio.gather(*(rig.push(name) for name in names))

        assert {one.status_code for one in [*first, *second]} == {204}
        assert asked == rig.asked() == len(names)
        assert "unavailable" not in rig.door.output()
