"""The reference keeps its claim on a waiting retry, and the poller that claims the retry takes it over."""

from __future__ import annotations

import pytest

from handlers.redis_store.queue.queue import Claim, Nack
from tests.redis_store.queue.queueing import DEADLINE, Bench, body, envelope

OWNER = "5f2c9a0e41d7b683"


async def kept(bench: Bench, key: str, member: bytes, again: bytes) -> Claim:
    """Claims `again` while another processor's claim on `member` runs."""
    await bench.foreign_claim(key, member, OWNER)
    await bench.redis.zadd(bench.keys.index, {key: await bench.now() + 300})
    await bench.put(again)
    (claim,) = await bench.queue.claim(1)
    return claim


@pytest.mark.parametrize(
    ("key", "member", "again"),
    [
        ("r\0t-1", envelope("r", "t-1"), envelope("r", "t-1", retry_count=1)),
        ("r\0t-1", envelope("r", "t-1", retry_count=3), envelope("r", "t-1", retry_count=3)),
        ("r", envelope("r"), envelope("r", retry_count=1)),
        ("r", envelope("r", retry_count=1), envelope("r", retry_count=2, queue_id="q")),
        ("r", body("r"), envelope("r", retry_count=1)),
    ],
)
async def test_a_claim_kept_for_a_retry_is_taken_over_and_ends_once(
    bench: Bench, key: str, member: bytes, again: bytes
) -> None:
    claim = await kept(bench, key, member, again)

    assert claim.claim_key == key.encode()
    assert await bench.redis.hgetall(bench.keys.claimed) == {claim.claim_key: again}
    assert await bench.redis.hget(bench.keys.owners, key) == claim.owner_token != OWNER.encode()
    assert await bench.queue.ack([bench.ack_of(claim)]) == [True]
    assert await bench.all_keys() == {bench.results}, "nothing is left that would run out and end it again"


@pytest.mark.parametrize(
    ("key", "member", "again"),
    [
        ("r", body("r"), body("r", n=2)),
        ("r", envelope("r"), body("r")),
        ("r", envelope("r"), envelope("r", queue_id="q")),
        ("r", envelope("r", retry_count=2), envelope("r", retry_count=1)),
        ("r", envelope("r"), envelope("r", retry_count=1).replace(b'{"n": 1}', b'{"n": 2}')),
        ("r\0t-1", envelope("r", "t-1"), body("r\0t-1")),
        ("r\0t-1", b"no json", envelope("r", "t-1")),
    ],
)
async def test_a_request_that_may_be_another_submission_gets_a_claim_of_its_own(
    bench: Bench, key: str, member: bytes, again: bytes
) -> None:
    claim = await kept(bench, key, member, again)

    assert claim.claim_key != key.encode()
    assert await bench.redis.hget(bench.keys.claimed, key) == member
    assert await bench.redis.hget(bench.keys.owners, key) == OWNER.encode()


async def test_a_duplicate_of_a_claimed_request_is_dropped(bench: Bench) -> None:
    """As after the death of a processor whose claim and whose retry both came back, or a producer that sends again."""
    first = await bench.claimed(envelope("r", "t-1"))
    for member in (envelope("r", "t-1", retry_count=1), envelope("other", "t-2")):
        await bench.put(member)

    (second,) = await bench.queue.claim(2)
    assert second.request_id == "other"
    assert await bench.queue.renew([first, second]) == []
    assert await bench.queue.ack([bench.ack_of(first), bench.ack_of(second)]) == [True, True]
    assert await bench.all_keys() == {bench.results}


async def test_a_second_copy_returns_with_the_first_claim_if_its_owner_crashes(bench: Bench) -> None:
    await bench.claimed(envelope("r", "t-1"))
    await bench.put(envelope("r", "t-1"))
    assert await bench.queue.claim(1) == []
    await bench.end_leases()
    assert (await bench.queue.reclaim(10, 5)).returned == 1
    (again,) = await bench.queue.claim(10)
    assert again.member == envelope("r", "t-1")


async def test_equal_requests_without_a_token_stay_two_after_a_retry(bench: Bench) -> None:
    running = await bench.claimed(envelope("r"))
    other = await bench.claimed(envelope("r", retry_count=1))

    assert running.claim_key != other.claim_key
    assert await bench.queue.nack([Nack(other, envelope("r", retry_count=2), 0)]) == [True]
    await bench.make_due()
    assert await bench.promote() == 1
    (again,) = await bench.queue.claim(1)
    assert again.score == DEADLINE
    assert await bench.queue.ack([bench.ack_of(running), bench.ack_of(again)]) == [True, True]
