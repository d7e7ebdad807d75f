"""Promote on a real server: a due retry returns to its queue, whichever processor wrote it and whatever it holds."""

from __future__ import annotations

import pytest

from tests.redis_store.queue.queueing import DEADLINE, Bench, body, envelope


async def _retry(bench: Bench, member: bytes, due: float = 1) -> bytes:
    await bench.redis.zadd(bench.retries, {member: due})
    return member


async def test_retries_are_due_by_the_servers_clock(bench: Bench) -> None:
    now = await bench.now()
    due = await _retry(bench, envelope("due"), now - 1)
    later = await _retry(bench, envelope("later"), now + 1_800)

    assert await bench.promote() == 1

    assert await bench.pending() == [(due, DEADLINE)]
    assert await bench.redis.zrange(bench.retries, 0, -1) == [later]


async def test_a_retry_returns_to_the_queue_it_names(bench: Bench) -> None:
    other = f"{bench.queue_name}-other"
    member = await _retry(bench, envelope("r", "t", request_queue_name=other, enqueue_seq=3))

    await bench.promote()

    assert await bench.redis.zrange(other, 0, -1, withscores=True) == [(member, DEADLINE + 3 / 2**21)]
    assert await bench.pending() == []


@pytest.mark.parametrize(
    "member",
    [
        b"\xff no json",
        b"[]",
        b"7",
        b"null",
        b'{"internal": [], "data": null}',
        b"[" * 2_000,
        body("r", None),
        body("r", "nan"),
        body("r", float("nan")),
        body("r", [1]),
        envelope("r", "t", original_score="nan"),
        envelope("r", "t", enqueue_seq=float("nan")),
    ],
)
async def test_a_malformed_member_delays_no_other(bench: Bench, member: bytes) -> None:
    await _retry(bench, member, 1)
    await _retry(bench, envelope("behind it"), 2)

    assert await bench.promote() == 2

    assert {found for found, _ in await bench.pending()} == {member, envelope("behind it")}
    assert await bench.redis.zcard(bench.retries) == 0


async def test_a_member_without_a_queue_returns_to_the_default_queue(bench: Bench) -> None:
    await bench.redis.set(f"text-{bench.queue_name}", "1")
    names = [f"text-{bench.queue_name}", bench.retries, bench.keys.index, 7, ""]
    members = [await _retry(bench, envelope(f"r-{n}", "t", request_queue_name=name)) for n, name in enumerate(names)]

    assert await bench.promote() == len(names)

    assert {member for member, _ in await bench.pending()} == set(members)
    assert await bench.all_keys() == {bench.queue_name, f"text-{bench.queue_name}"}


async def test_five_thousand_due_at_once_return_in_one_call(bench: Bench) -> None:
    members = {envelope(f"r-{n}", "t", enqueue_seq=n): 1 for n in range(5_000)}
    await bench.redis.zadd(bench.retries, members)

    assert await bench.promote(limit=5_000) == 5_000

    assert [member for member, _ in await bench.pending()] == list(members)
    assert await bench.all_keys() == {bench.queue_name}


async def test_a_limit_takes_the_first_due(bench: Bench) -> None:
    for n in (3, 1, 2):
        await _retry(bench, envelope(f"r-{n}"), n)

    assert await bench.promote(limit=2) == 2

    assert await bench.redis.zrange(bench.retries, 0, -1) == [envelope("r-3")]
