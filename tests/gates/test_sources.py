"""A source is read in the background, once for all gates, and continues after any answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest

from handlers.gates.sources import Feed, FeedOptions, Feeds, SourceMissing
from tests.gates.building import Clock, ReadableLog
from tests.waiting import wait_until_async


def feeds(log: ReadableLog, refresh_seconds: float = 0.01) -> Feeds:
    return Feeds(FeedOptions(refresh_seconds=refresh_seconds, timeout_seconds=0.05), log, Clock())


def feed(log: ReadableLog, read: Callable[[], Awaitable[int]]) -> Feed[int]:
    return feeds(log).feed(("k",), read, name="a source")


async def endless() -> int:
    await asyncio.Event().wait()
    return 0


async def test_the_start_returns_after_the_first_reading(log: ReadableLog) -> None:
    async def read() -> int:
        return 7

    found = feed(log, read)
    await found.start()
    assert found.reading is not None
    assert found.reading.value == 7
    assert found.failure == ""
    await found.aclose()


async def test_a_source_that_hangs_does_not_delay_the_start(log: ReadableLog) -> None:
    found = feed(log, endless)
    await found.start()
    assert found.failure == "TimeoutError"
    await found.aclose()


@pytest.mark.parametrize("error", [SourceMissing("why"), OSError(), ValueError(), RuntimeError("a defect")])
async def test_a_source_is_read_again_after_any_exception(log: ReadableLog, error: Exception) -> None:
    reads = 0

    async def read() -> int:
        nonlocal reads
        reads += 1
        if reads < 4:
            raise error
        return reads

    found = feed(log, read)
    await found.start()
    assert found.failure == ("why" if isinstance(error, SourceMissing) else type(error).__name__)
    await wait_until_async(lambda: not found.failure, "the source to be back")
    await found.aclose()
    assert [event for _, event, _ in log.lines] == ["gate source lost", "gate source recovered"]


async def test_a_failure_keeps_the_last_reading(log: ReadableLog) -> None:
    is_down = False

    async def read() -> int:
        if is_down:
            raise SourceMissing("down")
        return 1

    found = feed(log, read)
    await found.start()
    is_down = True
    await wait_until_async(lambda: found.failure, "the failure")
    assert found.reading is not None
    assert found.reading.value == 1
    await found.aclose()


async def test_a_feed_is_read_until_the_last_of_its_users_closes_it(log: ReadableLog) -> None:
    reads = 0
    may_read_again = asyncio.Event()

    async def read() -> int:
        nonlocal reads
        if reads > 0:
            await may_read_again.wait()
        reads += 1
        return reads

    shared = feeds(log)
    first, second = (shared.feed(("k",), read, name="x") for _ in range(2))
    assert first is second
    await asyncio.gather(first.start(), second.start())
    assert reads == 1
    may_read_again.set()
    await first.aclose()
    seen = reads
    await wait_until_async(lambda: reads > seen, "it is still read")
    await second.aclose()
    seen = reads
    for _ in range(20):
        await asyncio.sleep(0)
    assert reads == seen
    await second.start()
    await wait_until_async(lambda: reads > seen, "it can be started again")
    await second.aclose()


async def test_closing_ends_the_loop_even_if_the_reader_swallows_the_cancellation(
    log: ReadableLog,
) -> None:
    """As the Redis library now and then does; else the process would never stop."""
    reads = 0
    hangs = asyncio.Event()

    async def read() -> int:
        nonlocal reads
        reads += 1
        if reads == 2:
            hangs.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        return reads

    options = FeedOptions(refresh_seconds=0.01, timeout_seconds=60)
    found = Feeds(options, log, Clock()).feed(("k",), read, name="a source")
    await found.start()
    await hangs.wait()
    async with asyncio.timeout(60):
        await found.aclose()
    assert reads == 2
