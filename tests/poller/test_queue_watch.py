"""Idle queues cost one command per poll, and requests are found by polls or signals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from functools import partial
from itertools import pairwise

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from handlers.demo.valkey import Valkey
from handlers.poller.claimer import ClaimedQueue, Claimer, ClaimerOptions
from handlers.poller.maintenance import Canceller, QueueTable
from handlers.poller.queue_watch import (
    PROMOTE_SECONDS,
    SILENT_POLL_SECONDS,
    SILENT_SECONDS,
    QueueWatch,
    Waiter,
)
from handlers.redis_store.admin.depths import existing, wake_signals
from handlers.redis_store.connection import STORE_FAILURES, RedisOptions, connect
from handlers.redis_store.submit.submissions import MemberParts, Submissions
from handlers.telemetry.logs import get_logger
from tests.poller.rig import IN_TIME, Rig, body, running
from tests.waiting import wait_until_async

LOG = get_logger("test")


class Clock:
    """Seconds that a test moves."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


class Scans:
    """Counts polls; `filled` are the existing keys."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.filled: set[str] = set()

    async def __call__(self, keys: Sequence[str]) -> Collection[str]:
        self.asked.append(list(keys))
        return self.filled.intersection(keys)

    async def next(self) -> list[str]:
        """The keys of the next poll."""
        count = len(self.asked)
        await wait_until_async(lambda: len(self.asked) > count, "the next look")
        return self.asked[count]


async def commands(store: Redis) -> dict[str, int]:
    """How often each command was called since the last reset."""
    found = await store.info("commandstats")
    return {name.removeprefix("cmdstat_"): row["calls"] for name, row in found.items()}


@pytest.mark.parametrize("count", [1, 64, 2_000])
async def test_a_poll_of_any_number_of_empty_queues_is_one_command(store: Redis, count: int) -> None:
    await store.config_resetstat()
    assert await existing(store, [f"q-{n}" for n in range(count)]) == set()
    assert (await commands(store)).get("exists") == 1


@pytest.mark.parametrize("filled", [{"q-0"}, {"q-7", "q-1999"}, {f"q-{n}" for n in range(2_000)}])
async def test_existing_returns_the_queues_that_have_requests(store: Redis, filled: set[str]) -> None:
    for name in filled:
        await store.zadd(name, {"x": 1})
    assert await existing(store, [f"q-{n}" for n in range(2_000)]) == filled


async def test_an_idle_pool_of_many_queues_polls_no_single_queue(store: Redis) -> None:
    scans = Scans()
    watch = QueueWatch(scans, LOG, poll_interval_seconds=0.001)
    rigs = [Rig(store, name=f"q-{n}") for n in range(20)]
    pool = Claimer("default", ClaimerOptions(slots=8, poll_interval_seconds=0.001, watch=watch), LOG)
    for rig in rigs:
        pool.add(ClaimedQueue(rig.queue, rig.worker))
    await store.config_resetstat()
    async with running(watch.run(), pool.run(), rigs[3].ack_batcher.run()):
        for _ in range(50):
            assert await scans.next() == [rig.queue.name for rig in rigs]
        assert not {"evalsha", "eval", "zrange"} & (await commands(store)).keys()
        await rigs[3].submit(body("a"))
        scans.filled.add("q-3")
        await wait_until_async(lambda: len(rigs[3].settled) == 1, "the request's result")
        pool.stop()


async def test_dormant_queues_are_built_at_their_first_request(store: Redis) -> None:
    rig, built = Rig(store, name="q-1"), list[str]()
    watch = QueueWatch(partial(existing, store), LOG, poll_interval_seconds=0.001)
    pool = Claimer("default", ClaimerOptions(slots=8, poll_interval_seconds=0.001, watch=watch), LOG)

    def build(name: str) -> None:
        built.append(name)
        pool.add(ClaimedQueue(rig.queue, rig.worker))

    for number in range(100):
        pool.add_dormant(f"q-{number}", partial(build, f"q-{number}"))
    async with running(watch.run(), pool.run(), rig.ack_batcher.run()):
        await rig.submit(body("a"))
        await wait_until_async(lambda: len(rig.settled) == 1, "the request's result")
        pool.stop()
    assert built == ["q-1"]


async def test_after_a_long_silence_polls_are_rare_until_a_request_arrives() -> None:
    clock, scans = Clock(), Scans()
    pauses: list[float] = []

    async def note(_wake: asyncio.Event, seconds: float) -> None:
        pauses.append(seconds)
        await asyncio.sleep(0)

    watch = QueueWatch(scans, LOG, poll_interval_seconds=0.02, clock=clock, pause=note)
    waiter = Waiter(["q"])
    async with running(watch.run()):
        waiting = asyncio.create_task(watch.wait(waiter))
        await scans.next()
        await scans.next()
        assert pauses[-1] == 0.02
        clock.seconds += SILENT_SECONDS
        await scans.next()
        await scans.next()
        assert pauses[-1] == SILENT_POLL_SECONDS
        scans.filled.add("q")
        assert await asyncio.wait_for(waiting, IN_TIME) == ["q"]
        assert not watch.is_silent


async def test_keys_are_empty_once_a_poll_after_the_silence_found_none_of_them() -> None:
    clock, scans = Clock(), Scans()

    async def no_promotion() -> int:
        return 0

    async def no_pause(_wake: asyncio.Event, _seconds: float) -> None:
        await asyncio.sleep(0)

    watch = QueueWatch(
        scans,
        LOG,
        poll_interval_seconds=0.02,
        retry_keys=["retries"],
        promote=no_promotion,
        clock=clock,
        pause=no_pause,
    )
    async with running(watch.run()):
        waiting = asyncio.create_task(watch.wait(Waiter(["q"])))
        await scans.next()
        await scans.next()
        assert not watch.are_empty(["q"])
        clock.seconds += SILENT_SECONDS
        await scans.next()
        await scans.next()
        assert watch.are_empty(["q", "retries"])
        assert not watch.are_empty(["q", "a closed queue"])
        scans.filled.add("retries")
        clock.seconds += 2 * PROMOTE_SECONDS
        await scans.next()
        await scans.next()
        assert not watch.are_empty(["retries"])
        waiting.cancel()


async def test_a_silent_poller_sends_one_command_for_all_polls_of_canceller_and_watch(
    store: Redis,
) -> None:
    """Every poll is one EXISTS, and the list of cancellations is not read while all queues are empty."""
    clock = Clock()
    scans = 0

    async def no_pause(_wake: asyncio.Event, _seconds: float) -> None:
        nonlocal scans
        scans += 1
        if scans == 20:
            await asyncio.Event().wait()
        await canceller.tick()

    watch = QueueWatch(partial(existing, store), LOG, poll_interval_seconds=0.02, clock=clock, pause=no_pause)
    canceller = Canceller(store, QueueTable(), None, LOG, now=lambda: 0.0, is_empty=lambda: watch.are_empty(["q"]))
    clock.seconds += SILENT_SECONDS
    await store.config_resetstat()
    waiting = asyncio.create_task(watch.wait(Waiter(["q"])))
    await asyncio.sleep(0)
    async with running(watch.run()):
        await wait_until_async(lambda: scans == 20, "twenty looks")
        waiting.cancel()
    called = await commands(store)
    assert called.get("zrangebyscore", 0) == 0
    assert called["exists"] <= 20


async def test_the_pause_between_polls_grows_with_the_number_of_queues() -> None:
    scans = Scans()
    pauses: list[float] = []

    async def note(_wake: asyncio.Event, seconds: float) -> None:
        pauses.append(seconds)
        await asyncio.sleep(0)

    watch = QueueWatch(scans, LOG, poll_interval_seconds=0.02, pause=note)
    async with running(watch.run()):
        waiting = asyncio.create_task(watch.wait(Waiter([f"q-{n}" for n in range(10_000)])))
        for _ in range(3):
            await scans.next()
        waiting.cancel()
    assert pauses[-1] == pytest.approx(0.5)


async def test_due_retries_are_promoted_only_while_the_retry_set_exists() -> None:
    clock, scans, promoted = Clock(), Scans(), list[float]()

    async def promote() -> int:
        promoted.append(clock.seconds)
        return 0

    async def note(_wake: asyncio.Event, seconds: float) -> None:
        clock.seconds += seconds
        await asyncio.sleep(0)

    watch = QueueWatch(
        scans,
        LOG,
        poll_interval_seconds=0.001,
        retry_keys=["retries"],
        promote=promote,
        clock=clock,
        pause=note,
    )
    async with running(watch.run()):
        assert await scans.next() == ["retries"]
        assert promoted == []
        scans.filled.add("retries")
        await wait_until_async(lambda: len(promoted) > 3, "promotions")
    assert all(later - earlier >= PROMOTE_SECONDS for earlier, later in pairwise(promoted))


async def test_polls_continue_while_redis_refuses_promotions(caplog: pytest.LogCaptureFixture) -> None:
    clock, scans, promotions = Clock(), Scans(), list[float]()
    scans.filled.add("retries")

    async def refuse() -> int:
        promotions.append(clock.seconds)
        raise ResponseError("WRONGTYPE ZCARD retries: Operation against a key")

    async def note(_wake: asyncio.Event, seconds: float) -> None:
        clock.seconds += seconds
        await asyncio.sleep(0)

    watch = QueueWatch(
        scans, LOG, poll_interval_seconds=0.001, retry_keys=["retries"], promote=refuse, clock=clock, pause=note
    )
    with caplog.at_level("WARNING"):
        async with running(watch.run()):
            waiting = asyncio.create_task(watch.wait(Waiter(["q"])))
            await wait_until_async(lambda: len(promotions) > 6, "promotions")
            assert "ZCARD retries" in watch.refusal
            assert not waiting.done(), "the queue is empty"
            scans.filled = {"q"}
            assert await asyncio.wait_for(waiting, IN_TIME) == ["q"]
            await wait_until_async(lambda: watch.refusal == "", "a poll that finds no retry set")
    assert promotions[-1] - promotions[-2] > 5 * PROMOTE_SECONDS
    assert caplog.text.count("refused by Redis") == 1


async def test_a_signal_releases_the_pool_of_its_queue_without_a_poll() -> None:
    clock, scans = Clock(), Scans()
    signals: asyncio.Queue[str] = asyncio.Queue()

    async def follow() -> AsyncIterator[str]:
        while True:
            yield await signals.get()

    watch = QueueWatch(scans, LOG, poll_interval_seconds=0.001, signals=follow, clock=clock)
    async with running(watch.run()):
        mine = asyncio.create_task(watch.wait(Waiter(["mine"])))
        other = asyncio.create_task(watch.wait(Waiter(["other"])))
        await scans.next()
        clock.seconds += SILENT_SECONDS
        signals.put_nowait("mine")
        assert await asyncio.wait_for(mine, IN_TIME) == ["mine"]
        assert not other.done()
        other.cancel()


async def test_a_submission_signals_its_queue_and_a_missing_right_does_not_fail_it(
    valkey: Valkey, store: Redis
) -> None:
    signals = wake_signals(store)
    first = asyncio.ensure_future(anext(signals))

    async def is_signalled() -> bool:
        return bool((await store.pubsub_numsub("{async-processor}:wake"))[0][1])

    await wait_until_async(is_signalled, "the subscription")
    member = MemberParts("r", 4_000_000_000, "t", b'{"internal":{"request_token":"t-', b"}}")
    await Submissions(store).submit("some-queue", [member])
    assert await asyncio.wait_for(first, IN_TIME) == "some-queue"
    await store.acl_setuser("mute", enabled=True, passwords=["+p"], keys=["*"], categories=["+@all"])
    mute = connect(RedisOptions(valkey.url, username="mute", password=lambda: "p", timeout_seconds=60))
    (queued,) = await Submissions(mute).submit("some-queue", [member])
    assert queued.is_new
    with pytest.raises(STORE_FAILURES):
        await anext(wake_signals(mute))
    await store.acl_deluser("mute")
    await mute.aclose()


async def test_while_redis_fails_pools_are_released_to_meet_the_failure() -> None:
    async def fail(_keys: Sequence[str]) -> Collection[str]:
        raise ConnectionError

    watch = QueueWatch(fail, LOG, poll_interval_seconds=0.001)
    async with running(watch.run()):
        assert await asyncio.wait_for(watch.wait(Waiter(["q"])), IN_TIME) == ["q"]
