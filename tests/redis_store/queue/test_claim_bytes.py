"""Claims are bounded by bytes, and what a lost reply claimed goes back without a death."""

from __future__ import annotations

from typing import Any, cast

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError

from handlers.redis_store.queue.queue import RedisQueue
from handlers.redis_store.scripts import BATCH_BYTES
from tests.redis_store.queue.queueing import Bench, envelope


def _large(name: str, size: int) -> bytes:
    return envelope(name, "t").replace(b'{"n": 1}', b'{"n": "' + b"x" * size + b'"}')


async def test_a_claim_takes_what_fits_and_at_least_one(bench: Bench) -> None:
    for n in range(6):
        await bench.put(_large(f"r-{n}", 10_000), n)

    assert [claim.request_id for claim in await bench.queue.claim(64, max_bytes=1)] == ["r-0"]
    assert [claim.request_id for claim in await bench.queue.claim(64, max_bytes=25_000)] == ["r-1", "r-2"]
    assert len(await bench.queue.claim(64)) == 3


async def test_no_reply_of_a_claim_exceeds_the_bound_by_more_than_one_request(bench: Bench) -> None:
    """Whatever the poller asks for."""
    for n in range(8):
        await bench.put(_large(f"r-{n}", BATCH_BYTES // 3), n)

    assert len(await bench.queue.claim(64, max_bytes=10**9)) == 2
    assert len(await bench.queue.claim(64)) == 2


async def test_a_scan_returns_and_hands_out_what_fits(bench: Bench) -> None:
    for n in range(5):
        await bench.claimed(_large(f"r-{n}", BATCH_BYTES // 3), n)
    await bench.end_leases()

    assert [(await bench.queue.reclaim(100, 5)).returned for _ in range(4)] == [2, 2, 1, 0]
    assert len(await bench.pending()) == 5


async def _lose_reply(bench: Bench, poller: RedisQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server claims; the poller never learns it."""
    script = poller._claim

    async def lost(keys: list[str], args: list[object]) -> object:
        await script(keys=keys, args=args)  # type: ignore[arg-type]  # handed through
        raise RedisConnectionError("reply lost")

    monkeypatch.setattr(poller, "_claim", lost)
    with pytest.raises(RedisConnectionError):
        await poller.claim(10)
    monkeypatch.setattr(poller, "_claim", script)


async def test_what_a_lost_reply_claimed_is_claimed_again_without_a_death(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = await bench.claimed(envelope("other", "t"), 0)
    for n in range(3):
        await bench.put(envelope(f"r-{n}", "t"), n + 1)
    poller = bench.owner()
    await _lose_reply(bench, poller, monkeypatch)
    assert await bench.pending() == []

    again = await poller.claim(10)

    assert [(claim.request_id, claim.score, claim.deaths) for claim in again] == [
        ("r-0", 1.0, 0),
        ("r-1", 2.0, 0),
        ("r-2", 3.0, 0),
    ]
    assert await bench.redis.exists(bench.keys.deaths) == 0
    assert await bench.queue.renew([other]) == [], "the claims of others stay theirs"


async def test_a_scan_takes_lost_claims_back_before_it_counts_deaths(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.put(_large("r", BATCH_BYTES))
    await bench.put(_large("s", BATCH_BYTES))
    poller = bench.owner()
    await _lose_reply(bench, poller, monkeypatch)
    await bench.end_leases()

    assert (await poller.reclaim(10, 1)).dead == []
    assert await bench.redis.exists(bench.keys.deaths) == 0
    assert len(await bench.pending()) == 2


async def test_a_claim_that_fails_at_its_second_write_undoes_the_first(bench: Bench, store: Redis) -> None:
    await bench.put(envelope("r", "t"))
    before = await bench.snapshot()
    await cast(Any, bench.redis).execute_command(
        "ACL", "SETUSER", "halfway", "on", "nopass", "~*", "+@all", "-hset"
    )
    port = bench.redis.connection_pool.connection_kwargs["port"]
    user = Redis(port=port, username="halfway", password="x")
    options = bench.queue._options
    with pytest.raises(NoPermissionError, match=r"HSET .*:claimed|HSET .*:claim-owners"):
        await RedisQueue(user, bench.queue_name, options).claim(1)
    await user.aclose()
    await cast(Any, bench.redis).execute_command("ACL", "DELUSER", "halfway")
    assert await bench.snapshot() == before
