"""Claims are bounded by bytes, and claims of a lost reply return without a counted death."""

from __future__ import annotations

import asyncio
import hashlib
from functools import partial
from typing import Any, cast

import pytest
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from handlers.redis_store.queue.queue import RedisQueue
from handlers.redis_store.scripts import SCRIPT_BYTES
from tests.redis_store.queue.queueing import DEADLINE, Bench, LosingRedis, envelope, lose_reply


def _large(name: str, size: int) -> bytes:
    return envelope(name, "t").replace(b'{"n": 1}', b'{"n": "' + b"x" * size + b'"}')


async def test_a_claim_takes_requests_that_fit_and_at_least_one(bench: Bench) -> None:
    for n in range(6):
        await bench.put(_large(f"r-{n}", 10_000), n)

    assert [claim.request_id for claim in await bench.queue.claim(64, max_bytes=1)] == ["r-0"]
    assert [claim.request_id for claim in await bench.queue.claim(64, max_bytes=25_000)] == ["r-1", "r-2"]
    assert len(await bench.queue.claim(64)) == 3


async def test_no_reply_of_a_claim_exceeds_the_bound_by_more_than_one_request(bench: Bench) -> None:
    """With any number asked for."""
    for n in range(8):
        await bench.put(_large(f"r-{n}", SCRIPT_BYTES // 3), n)

    assert len(await bench.queue.claim(64, max_bytes=10**9)) == 2
    assert len(await bench.queue.claim(64)) == 2


async def test_a_scan_is_bounded_by_bytes(bench: Bench) -> None:
    for n in range(5):
        await bench.claimed(_large(f"r-{n}", SCRIPT_BYTES // 3), n)
    await bench.end_leases()

    assert [(await bench.queue.reclaim(100, 5)).returned for _ in range(4)] == [2, 2, 1, 0]
    assert len(await bench.pending()) == 5


@pytest.fixture
def losing(bench: Bench) -> LosingRedis:
    return LosingRedis(bench.redis)


async def test_claims_of_a_lost_reply_are_claimed_again_without_a_delivery_count(
    bench: Bench, losing: LosingRedis
) -> None:
    other = await bench.claimed(envelope("other", "t"), 0)
    for n in range(3):
        await bench.put(envelope(f"r-{n}", "t"), n + 1)
    poller = bench.owner(losing)
    await lose_reply(poller, losing)
    assert await bench.pending() == []

    again = await poller.claim(10)

    assert [(claim.request_id, claim.score, claim.delivery_count) for claim in again] == [
        ("r-0", 1.0, 0),
        ("r-1", 2.0, 0),
        ("r-2", 3.0, 0),
    ]
    assert await bench.redis.exists(bench.keys.deaths) == 0
    assert await bench.queue.renew([other]) == [], "the claims of others stay theirs"


async def test_reclaim_returns_lost_claims_without_counting_a_crash(bench: Bench, losing: LosingRedis) -> None:
    await bench.put(_large("r", SCRIPT_BYTES))
    await bench.put(_large("s", SCRIPT_BYTES))
    poller = bench.owner(losing)
    await lose_reply(poller, losing)
    await bench.end_leases()

    assert (await poller.reclaim(10, 1)).dead == []
    assert await bench.redis.exists(bench.keys.deaths) == 0
    assert len(await bench.pending()) == 2


async def test_claim_and_reclaim_may_return_the_same_lost_claims_at_once(
    bench: Bench, losing: LosingRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both forget an old loss; neither fails."""
    monkeypatch.setattr("handlers.redis_store.queue.queue.HELD_BACK_LEASES", 0)
    await bench.put(envelope("r", "t"))
    poller = bench.owner(losing)
    await lose_reply(poller, losing)

    claims, scan = await asyncio.gather(poller.claim(10), poller.reclaim(10, 1))

    assert [(claim.request_id, claim.delivery_count) for claim in claims] == [("r", 0)]
    assert (scan.returned, scan.dead) == (0, [])


async def test_claims_of_a_reply_lost_during_their_return_are_returned_next(bench: Bench, losing: LosingRedis) -> None:
    poller = bench.owner(losing)
    await bench.put(envelope("first", "t"))
    await lose_reply(poller, losing)
    losing.after_take_back = partial(lose_reply, poller, losing)
    assert await poller.take_back() == 1
    assert await bench.pending() == [], "claimed again, and that reply was lost, too"

    assert [claim.request_id for claim in await poller.claim(10)] == ["first"]


async def test_a_claim_that_fails_at_its_second_write_undoes_the_first(bench: Bench, store: Redis) -> None:
    await bench.put(envelope("r", "t"))
    before = await bench.snapshot()
    await cast(Any, bench.redis).execute_command("ACL", "SETUSER", "halfway", "on", "nopass", "~*", "+@all", "-hset")
    port = bench.redis.connection_pool.connection_kwargs["port"]
    user = Redis(port=port, username="halfway", password="x", socket_timeout=60, socket_connect_timeout=60)
    with pytest.raises(NoPermissionError, match=r"HSET .*:claimed|HSET .*:claim-owners"):
        await RedisQueue(user, bench.queue_name, bench.options).claim(1)
    await user.aclose()
    await cast(Any, bench.redis).execute_command("ACL", "DELUSER", "halfway")
    assert await bench.snapshot() == before


async def test_side_keys_of_another_type_stop_no_request(bench: Bench) -> None:
    for key in (bench.keys.deaths, "request-cancel:r", "request-active:r"):
        await bench.redis.rpush(key, "x")
    await bench.put(envelope("r", "t"))
    await bench.put(envelope("s", "t"), DEADLINE + 1)

    first, second = await bench.queue.claim(2)
    assert (first.delivery_count, first.is_cancelled) == (0, False)
    assert await bench.queue.cancelled([first, second]) == []
    await bench.end_leases()
    assert (await bench.queue.reclaim(10, 1)).returned == 2
    claims = await bench.queue.claim(2)
    acks = [bench.ack_of(claim, request_token="t") for claim in claims]
    assert await bench.queue.ack(acks) == [True, True]


@pytest.mark.parametrize("member", [b'{"id": "v\\u0000ab:1:s=1"}', b'{"id": "v", "x": "\\ud800"}'])
async def test_no_id_takes_the_form_of_another_requests_claim(bench: Bench, member: bytes) -> None:
    """Or its end would forget the deaths of that other request."""
    claim = await bench.claimed(member)
    assert b"\0" not in claim.claim_key


async def test_a_token_in_the_form_of_an_owner_token_has_a_digest_as_claim_key(bench: Bench) -> None:
    claim = await bench.claimed(envelope("victim", "ab:1:s=1"))
    assert len(claim.claim_key) == 40 and b"victim" not in claim.claim_key


async def test_the_id_is_read_from_the_first_four_kilobytes_and_else_is_a_digest(bench: Bench) -> None:
    text = b"x" * 5_000
    near = b'{"id": "near", "deadline": 9, "payload": {"p": "' + text + b'"}}'
    far = b'{"payload": {"p": "' + text + b'"}, "id": "far", "deadline": 9}'
    assert (await bench.claimed(near)).claim_key == b"near"
    assert (await bench.claimed(far)).claim_key == hashlib.sha1(far, usedforsecurity=False).hexdigest().encode()


@pytest.mark.parametrize(
    "before",
    [
        b'"created": -1.5e+3, "x": true,\n\t"y" : null , "z":[1, {"id": "inner"}, "]"], ',
        b'"x": "a \\" quote", "y": "\\\\", "z": {"id": "inner", "data": {"id": "deeper"}}, ',
        b" " * 3_000,
        b'"x": {}, "y": [], "z": "", "w": 0.5, ',
        b'"data": "no object", "internal": 7, ',
    ],
)
async def test_the_id_of_a_large_member_is_read_after_any_values(bench: Bench, before: bytes) -> None:
    member = b"{" + before + b'"id": "own", "deadline": 9, "payload": {"p": "' + b"x" * 5_000 + b'"}}'
    assert (await bench.claimed(member)).claim_key == b"own"


async def test_a_large_member_that_is_not_json_has_a_digest_as_claim_key(bench: Bench) -> None:
    member = b'{"x": <>, "id": "own", "p": "' + b"x" * 5_000 + b'"}'
    assert len((await bench.claimed(member)).claim_key) == 40
