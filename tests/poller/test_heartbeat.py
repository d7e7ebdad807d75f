"""Leases are kept while work lasts, and given up as soon as they are not ours or cannot be kept."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.asyncio import Redis

from handlers.contract.request import Request
from handlers.demo.servers import Valkey
from handlers.forward.outcome import Outcome
from handlers.poller.maintenance import LeaseKeeper
from handlers.redis_store.connection import STORE_FAILURES, RedisOptions, connect
from tests.poller.rig import IN_TIME, QUEUE, Rig, body, running
from tests.poller.tables import table_of
from tests.waiting import wait_until_async


async def forever(_request: Request) -> Outcome:
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


class Monotonic:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def lease_ends(store: Redis) -> dict[bytes, float]:
    ends: list[Any] = await store.zrange(f"{QUEUE}:claims-idx", 0, -1, withscores=True)
    return dict(ends)


async def test_a_tick_moves_the_end_of_every_lease(store: Redis) -> None:
    rig = Rig(store, forever, lease_seconds=30.0)
    async with running(rig.ack_batcher.run()):
        rig.worker.start(await rig.claimed(body("a"), body("b")))
        before = await lease_ends(store)
        await LeaseKeeper(table_of(rig), 30.0).tick()
        after = await lease_ends(store)
        assert len(after) == 2
        assert all(after[key] > before[key] for key in after)
        rig.worker.hand_back()
        await wait_until_async(lambda: rig.worker.in_flight == 0, "the work to end")
        await asyncio.wait_for(rig.ack_batcher.drained(), IN_TIME)


async def test_a_claim_that_another_took_is_given_up_and_its_work_cancelled(store: Redis) -> None:
    rig = Rig(store, forever)
    claims = await rig.claimed(body("a"), body("b"))
    async with running(rig.ack_batcher.run()):
        rig.worker.start(claims)
        await store.hset(f"{QUEUE}:claim-owners", mapping={claims[0].claim_key: b"another"})
        await LeaseKeeper(table_of(rig), 30.0).tick()
        assert rig.worker.held_claims() == [claims[1]]
        await wait_until_async(lambda: rig.worker.in_flight == 1, "the lost work to end")
        rig.worker.hand_back()
        await wait_until_async(lambda: rig.worker.in_flight == 0, "the rest to end")
        await asyncio.wait_for(rig.ack_batcher.drained(), IN_TIME)
    assert await store.hget(f"{QUEUE}:claim-owners", claims[0].claim_key.decode()) == b"another"


async def test_with_nothing_held_nothing_is_asked(store: Redis) -> None:
    rig = Rig(store)
    before = (await store.info("stats"))["total_commands_processed"]
    await LeaseKeeper(table_of(rig), 30.0).tick()
    assert (await store.info("stats"))["total_commands_processed"] == before + 1  # this very question


async def test_leases_that_could_not_be_renewed_for_their_whole_length_are_given_up(
    valkey: Valkey, store: Redis
) -> None:
    """The server may have given them away meanwhile: going on would be a second execution."""
    impatient = connect(RedisOptions(valkey.url, timeout_seconds=0.5))
    rig = Rig(impatient, forever, lease_seconds=15.0)
    monotonic = Monotonic()
    heartbeat = LeaseKeeper(table_of(rig), 15.0, monotonic)
    await heartbeat.tick()
    rig.worker.start(await rig.claimed(body("a")))
    await store.client_pause(60_000, all=False)  # writes only: so it can be ended
    for at, is_held in ((105.0, True), (114.9, True), (115.1, False)):
        monotonic.now = at
        with pytest.raises(STORE_FAILURES):
            await heartbeat.tick()
        assert bool(rig.worker.held_claims()) is is_held
    await wait_until_async(lambda: rig.worker.in_flight == 0, "the work to end")
    await store.client_unpause()
    await impatient.aclose()
