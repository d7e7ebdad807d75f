"""Reading a result list in place: oldest first, with bounded replies."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from handlers.contract.result import ErrorCode, answered_result, encode_result, error_result
from handlers.redis_store.results.results import Results, drop_oldest_results, oldest_results
from handlers.redis_store.scripts import BATCH_BYTES

LARGE = BATCH_BYTES // 2 - 10


@pytest.mark.parametrize(
    ("sizes", "counts"),
    [
        ([10] * 7, [7]),
        ([LARGE, LARGE, LARGE], [2, 1]),
        ([10, 10, 3 * BATCH_BYTES, 10], [2, 1, 1]),
        ([3 * BATCH_BYTES, 3 * BATCH_BYTES], [1, 1]),
    ],
)
async def test_a_read_is_bounded_by_bytes_and_one_result_always_passes(
    store: Redis, sizes: list[int], counts: list[int]
) -> None:
    written = [b"%d" % number + b"x" * size for number, size in enumerate(sizes)]
    for text in written:
        await store.lpush("results", text)
    read: list[bytes] = []
    for count in counts:
        found = await oldest_results(store, "results", 100)
        assert len(found) == count
        read += found
        await drop_oldest_results(store, "results", count)
    assert read == written
    assert await oldest_results(store, "results", 100) == []


async def test_oldest_results_skips_seen_results_and_returns_at_most_the_requested_number(store: Redis) -> None:
    for number in range(9):
        await store.lpush("results", str(number))
    assert await oldest_results(store, "results", 3, skipped=2) == [b"2", b"3", b"4"]
    assert await oldest_results(store, "results", 3, skipped=8) == [b"8"]
    assert await oldest_results(store, "missing", 3) == []


async def test_six_results_of_one_id_without_a_token_are_received_six_times(store: Redis) -> None:
    for number in range(6):
        await store.lpush("results", b'{"id":"r","status_code":200,"payload":"%d"}' % number)
    results = Results(store, "results", owner="o", lease_ms=60_000, tombstone_ms=60_000)
    held = [*await results.receive(4), *await results.receive(4)]
    assert [one.result[-3:-2] for one in held] == [b"0", b"1", b"2", b"3", b"4", b"5"]
    assert len({one.claim_key for one in held}) == 6


@pytest.mark.parametrize("is_read_first", [True, False])
async def test_a_dead_letter_that_is_queued_again_has_its_second_result_received(
    store: Redis, is_read_first: bool
) -> None:
    dead = encode_result(error_result("r", "t", ErrorCode.UNDELIVERABLE, "3 pollers crashed"))
    answered = encode_result(answered_result("r", "t", 200, b"an answer"))
    results = Results(store, "results", owner="o", lease_ms=60_000, tombstone_ms=60_000)
    received: list[bytes] = []

    async def receive() -> None:
        for held in await results.receive(10):
            received.append(held.result)
            await results.ack([held.claim_key])

    await store.lpush("results", dead, dead)
    if is_read_first:
        await receive()
    await store.lpush("results", answered, answered, dead)
    await receive()
    assert received == [dead, answered]
