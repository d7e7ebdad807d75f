"""Reclaim on a real server: a crashed owner's requests return unchanged, once, and a limited number of times."""

from __future__ import annotations

import asyncio

import pytest

from tests.redis_store.queue.queueing import DEADLINE, LEASE_SECONDS, Bench, body, envelope
from tests.waiting import CLOCK_SET_SECONDS


@pytest.mark.parametrize(
    ("member", "score"),
    [
        (envelope("r", "t-7", enqueue_seq=7), DEADLINE + 7 / 2**21),
        (envelope("r", "t-7", enqueue_seq=7), 12.5),
        (body("bare", str(DEADLINE)), DEADLINE),
        (b"\xff\x00 no json", 1_700_000_000.123456),
        (b'{"id": "spaces",   "deadline": 5}\n', float("inf")),
    ],
)
async def test_a_request_of_a_crashed_owner_returns_byte_for_byte(bench: Bench, member: bytes, score: float) -> None:
    claim = await bench.claimed(member, score)
    await bench.end_leases()

    found = await bench.owner().reclaim(10, max_deliveries=5)

    assert (found.returned, found.dead) == (1, [])
    assert await bench.pending() == [(member, score)]
    assert await bench.queue.renew([claim]) == [claim]
    assert await bench.all_keys() == {bench.queue_name, bench.keys.deaths}


@pytest.mark.parametrize(
    ("member", "score"),
    [
        (envelope("r", "t"), DEADLINE),
        (envelope("r", "t", enqueue_seq=7), DEADLINE + 7 / 2**21),
        (envelope("r", "t", enqueue_seq=2**40), DEADLINE + 1 - 2**-21),
        (envelope("r", "t", enqueue_seq=7, original_score=12.25), 12.25),
        (body("r", str(DEADLINE)), DEADLINE),
        (body("r", DEADLINE + 0.5), DEADLINE + 0.5),
    ],
)
async def test_the_references_claims_return_with_their_producers_score(
    bench: Bench, member: bytes, score: float
) -> None:
    await bench.foreign_claim("r\0t", member)

    assert (await bench.queue.reclaim(10, max_deliveries=5)).returned == 1

    assert await bench.pending() == [(member, score)]


@pytest.mark.parametrize(
    "member",
    [
        b"no json",
        b"[]",
        b"7",
        b'{"internal": 5, "data": "x"}',
        body("r", None),
        body("r", "nan"),
        body("r", float("nan")),
        envelope("r", "t", original_score="nan"),
    ],
)
async def test_a_foreign_claim_without_a_score_returns_as_of_now(bench: Bench, member: bytes) -> None:
    await bench.foreign_claim("broken", member)
    await bench.foreign_claim("r", body("behind it"))
    now = await bench.now()

    assert (await bench.queue.reclaim(10, max_deliveries=5)).returned == 2

    after = await bench.now()
    scores = dict(await bench.pending())
    assert scores[body("behind it")] == DEADLINE
    assert now - CLOCK_SET_SECONDS <= scores[member] <= after + CLOCK_SET_SECONDS or scores[member] == DEADLINE


async def test_a_claim_with_a_live_lease_is_not_reclaimed(bench: Bench) -> None:
    claim = await bench.claimed(body("r"))

    assert (await bench.owner().reclaim(10, max_deliveries=1)).returned == 0

    assert await bench.queue.renew([claim]) == []


async def test_a_claim_with_a_renewed_lease_is_not_reclaimed(bench: Bench) -> None:
    claim = await bench.claimed(body("r"))
    await bench.end_leases()
    before = await bench.now()
    assert await bench.queue.renew([claim]) == []

    found = await bench.owner().reclaim(10, max_deliveries=1)

    assert (found.returned, found.dead) == (0, [])
    ends = await bench.redis.zscore(bench.keys.index, claim.claim_key)
    assert ends is not None and ends >= before + LEASE_SECONDS - CLOCK_SET_SECONDS


async def test_two_reclaimers_return_each_request_once(bench: Bench) -> None:
    members = [await bench.put(body(f"r-{n}"), n) for n in range(100)]
    await bench.queue.claim(100)
    await bench.end_leases()

    found = await asyncio.gather(*(bench.owner().reclaim(15, max_deliveries=5) for _ in range(12)))

    assert sum(each.returned for each in found) == 100
    assert [member for member, _ in await bench.pending()] == members


async def test_a_limit_takes_the_oldest_first(bench: Bench) -> None:
    for n in range(3):
        await bench.put(body(f"r-{n}"), n)
    claims = await bench.queue.claim(3)
    for end, claim in enumerate(reversed(claims), 1):
        await bench.redis.zadd(bench.keys.index, {claim.claim_key: end})

    assert (await bench.queue.reclaim(2, max_deliveries=5)).returned == 2

    assert [member for member, _ in await bench.pending()] == [body("r-1"), body("r-2")]


async def test_i14_a_request_over_the_redelivery_limit_is_claimed_by_reclaim(bench: Bench) -> None:
    member = await bench.put(envelope("poison", "t"), 5)
    for deaths in range(2):
        assert [claim.delivery_count for claim in await bench.owner().claim(1)] == [deaths]
        await bench.end_leases()
        assert (await bench.queue.reclaim(10, max_deliveries=3)).returned == 1
    stale = (await bench.owner().claim(1))[0]
    await bench.end_leases()

    found = await bench.queue.reclaim(10, max_deliveries=3)

    assert found.returned == 0
    [claim] = found.dead
    assert (claim.member, claim.score, claim.delivery_count) == (member, 5, 3)
    assert await bench.queue.ack([bench.ack_of(stale)]) == [False]
    assert await bench.queue.renew([claim]) == []
    assert await bench.queue.ack([bench.ack_of(claim, dead=b"{}")]) == [True]
    assert await bench.all_keys() == {bench.results, bench.keys.dead}


async def test_i14_a_crash_of_the_reclaiming_poller_does_not_lose_the_request(bench: Bench) -> None:
    await bench.claimed(body("poison"))
    await bench.end_leases()
    assert len((await bench.queue.reclaim(10, max_deliveries=1)).dead) == 1
    await bench.end_leases()

    [claim] = (await bench.owner().reclaim(10, max_deliveries=1)).dead

    assert (claim.member, claim.delivery_count) == (body("poison"), 2)


async def test_delivery_counts_are_deleted_with_the_result_or_after_a_week(bench: Bench) -> None:
    await bench.claimed(body("r"))
    await bench.end_leases()
    await bench.queue.reclaim(10, max_deliveries=5)
    assert 604_700 < await bench.redis.ttl(bench.keys.deaths) <= 604_800

    [claim] = await bench.queue.claim(1)
    await bench.queue.ack([bench.ack_of(claim)])

    assert await bench.all_keys() == {bench.results}


async def test_delivery_counts_of_one_id_queued_twice_are_deleted_too(bench: Bench) -> None:
    await bench.put(body("same", n=1), 1)
    await bench.put(body("same", n=2), 2)
    await bench.queue.claim(2)
    await bench.end_leases()
    assert (await bench.queue.reclaim(10, max_deliveries=5)).returned == 2

    claims = await bench.queue.claim(2)
    assert await bench.queue.ack([bench.ack_of(claim) for claim in claims]) == [True, True]

    assert await bench.all_keys() == {bench.results}


async def test_a_claim_without_an_index_entry_is_indexed_again(bench: Bench) -> None:
    claim = await bench.claimed(body("r"))
    await bench.redis.delete(bench.keys.index)

    assert (await bench.queue.reclaim(10, max_deliveries=5)).returned == 0
    await bench.end_leases()
    assert (await bench.queue.reclaim(10, max_deliveries=5)).returned == 1

    assert await bench.pending() == [(claim.member, DEADLINE)]


async def test_missing_index_entries_among_thousands_are_added(bench: Bench) -> None:
    await bench.redis.zadd(bench.queue_name, {body(f"r-{n}"): n for n in range(5_000)})
    claims = await bench.queue.claim(5_000)
    lost = [claim.claim_key for claim in claims[::500]]
    await bench.redis.zrem(bench.keys.index, *lost)

    await bench.queue.reclaim(10, max_deliveries=5)

    assert None not in [await bench.redis.zscore(bench.keys.index, key) for key in lost]


async def test_an_index_entry_without_a_claim_is_dropped(bench: Bench) -> None:
    await bench.redis.zadd(bench.keys.index, {"nobody": 1})

    found = await bench.queue.reclaim(10, max_deliveries=1)

    assert (found.returned, found.dead) == (0, [])
    assert await bench.all_keys() == set()
