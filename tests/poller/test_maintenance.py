"""One scan answers cancelled requests: waiting ones without a slot, claimed ones after their work."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, BusyLoadingError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from handlers.contract.request import Request
from handlers.contract.result import ErrorCode
from handlers.demo.valkey import Valkey
from handlers.forward.outcome import Outcome
from handlers.poller import worker
from handlers.poller.maintenance import Canceller, LeaseRenewal, PeriodicTask, Reclaimer
from handlers.redis_store.connection import STORE_FAILURES, RedisOptions, connect
from handlers.redis_store.keys import active_key, queue_keys
from handlers.redis_store.submit.submissions import Submissions
from handlers.telemetry.logs import LogOptions, configure_logs, get_logger
from tests.poller.rig import IN_TIME, QUEUE, Rig, body, running
from tests.poller.tables import table_of
from tests.redis_keys import end_leases
from tests.redis_store.queue.queueing import DEADLINE, envelope
from tests.waiting import wait_until_async

MANY = 2_000


async def submitted(rig: Rig, *numbers: int) -> None:
    """Requests as our client queues them."""
    for number in numbers:
        await rig.store.set(active_key(f"r-{number}"), f"t-{number}", exat=DEADLINE)
        await rig.submit(envelope(f"r-{number}", f"t-{number}"), score=DEADLINE + number / 2**21)


async def cancelled(rig: Rig, *numbers: int) -> None:
    done = await Submissions(rig.store).cancel([(f"r-{number}", "") for number in numbers])
    assert all(done)


def canceller_of(*rigs: Rig, is_stopping: bool = False) -> Canceller:
    """The canceller of these queues."""
    return Canceller(
        rigs[0].store,
        table_of(*rigs),
        None,
        rigs[0].log,
        now=rigs[0].queue.now,
        is_stopping=lambda: is_stopping,
    )


class Slow:
    """A handler that ends when allowed, like one that first releases a slot; `stops` counts cancellations."""

    def __init__(self) -> None:
        self.stops = 0
        self.may_end = asyncio.Event()

    async def __call__(self, _request: Request) -> Outcome:
        while not self.may_end.is_set():
            try:
                await self.may_end.wait()
            except asyncio.CancelledError:
                self.stops += 1
        raise asyncio.CancelledError


async def test_one_scan_answers_all_cancelled_pending_requests(store: Redis) -> None:
    rig = Rig(store)
    numbers = range(1, MANY + 1)
    await submitted(rig, *numbers)
    await cancelled(rig, *numbers)
    async with running(rig.ack_batcher.run()):
        await canceller_of(rig).tick()
        await asyncio.wait_for(rig.ack_batcher.drained(), IN_TIME)
    assert rig.dispatched == []
    assert {one.error_code for one in await rig.results()} == {ErrorCode.CANCELLED}
    assert (await rig.result_count(), await rig.pending(), rig.worker.held_claims()) == (MANY, 0, [])


async def test_a_stopping_poller_leaves_queued_requests_to_others_and_answers_claimed_ones(
    store: Redis,
) -> None:
    handler = Slow()
    rig = Rig(store, handler)
    await submitted(rig, 1, 2)
    rig.start(await rig.queue.claim(1))
    await wait_until_async(lambda: bool(rig.dispatched), "the first in flight")
    await cancelled(rig, 1, 2)
    async with running(rig.ack_batcher.run()):
        await canceller_of(rig, is_stopping=True).tick()
        handler.may_end.set()
        await wait_until_async(lambda: rig.worker.in_flight == 0, "its work to end")
        await asyncio.wait_for(rig.ack_batcher.drained(), IN_TIME)
    (result,) = await rig.results()
    assert (result.id, await rig.pending()) == ("r-1", 1)


@pytest.mark.parametrize(("pause_seconds", "stops"), [(3_600.0, 1), (0.0, 2)])
async def test_work_that_is_ending_is_stopped_again_only_after_a_while(
    store: Redis, monkeypatch: pytest.MonkeyPatch, pause_seconds: float, stops: int
) -> None:
    monkeypatch.setattr(worker, "CANCEL_AGAIN_SECONDS", pause_seconds)
    handler = Slow()
    rig = Rig(store, handler)
    canceller = canceller_of(rig)
    await submitted(rig, 1)
    rig.start(await rig.queue.claim(1))
    await wait_until_async(lambda: bool(rig.dispatched), "the request in flight")
    await cancelled(rig, 1)
    await canceller.tick()
    await canceller.tick()
    await asyncio.sleep(0)
    assert handler.stops == stops
    handler.may_end.set()
    async with running(rig.ack_batcher.run()):
        await wait_until_async(lambda: rig.worker.in_flight == 0, "its work to end")
        await asyncio.wait_for(rig.ack_batcher.drained(), IN_TIME)


async def test_a_queue_of_another_type_does_not_keep_others_from_being_cancelled(store: Redis) -> None:
    broken, rig = Rig(store, name="broken"), Rig(store)
    await store.set("broken", "no queue")
    await submitted(rig, 1)
    await cancelled(rig, 1)
    async with running(rig.ack_batcher.run()):
        await canceller_of(broken, rig).tick()
        await asyncio.wait_for(rig.ack_batcher.drained(), IN_TIME)
    assert [one.id for one in await rig.results()] == ["r-1"]


async def endless(_request: Request) -> Outcome:
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


class Monotonic:
    """A clock that a test advances."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def lease_ends(store: Redis) -> dict[bytes, float]:
    ends: list[Any] = await store.zrange(f"{QUEUE}:claims-idx", 0, -1, withscores=True)
    return dict(ends)


async def test_a_tick_moves_the_end_of_every_lease(store: Redis) -> None:
    rig = Rig(store, endless, lease_seconds=30.0)
    async with running(rig.ack_batcher.run()):
        rig.start(await rig.claimed(body("a"), body("b")))
        before = await lease_ends(store)
        await LeaseRenewal(table_of(rig), 30.0).tick()
        after = await lease_ends(store)
        assert len(after) == 2
        assert all(after[key] > before[key] for key in after)
        rig.worker.hand_back()
        await wait_until_async(lambda: rig.worker.in_flight == 0, "the work to end")
        await asyncio.wait_for(rig.ack_batcher.drained(), IN_TIME)


async def test_the_work_of_a_claim_taken_over_by_another_poller_is_cancelled(store: Redis) -> None:
    rig = Rig(store, endless)
    claims = await rig.claimed(body("a"), body("b"))
    async with running(rig.ack_batcher.run()):
        rig.start(claims)
        await store.hset(f"{QUEUE}:claim-owners", mapping={claims[0].claim_key: b"another"})
        await LeaseRenewal(table_of(rig), 30.0).tick()
        assert rig.worker.held_claims() == [claims[1]]
        await wait_until_async(lambda: rig.worker.in_flight == 1, "the lost work to end")
        rig.worker.hand_back()
        await wait_until_async(lambda: rig.worker.in_flight == 0, "the rest to end")
        await asyncio.wait_for(rig.ack_batcher.drained(), IN_TIME)
    assert await store.hget(f"{QUEUE}:claim-owners", claims[0].claim_key.decode()) == b"another"


async def test_without_claims_no_command_is_sent(store: Redis) -> None:
    rig = Rig(store)
    before = (await store.info("stats"))["total_commands_processed"]
    await LeaseRenewal(table_of(rig), 30.0).tick()
    assert (await store.info("stats"))["total_commands_processed"] == before + 1  # this very question


async def test_leases_that_could_not_be_renewed_for_their_whole_length_are_given_up(
    valkey: Valkey, store: Redis
) -> None:
    """The server may have given them to another poller, so continuing would be a second execution."""
    impatient = connect(RedisOptions(valkey.url, timeout_seconds=0.5))
    rig = Rig(impatient, endless, lease_seconds=15.0)
    monotonic = Monotonic()
    heartbeat = LeaseRenewal(table_of(rig), 15.0, monotonic)
    await heartbeat.tick()
    rig.start(await Rig(store).claimed(body("a")))
    await store.client_pause(60_000, all=False)  # writes only: so it can be ended
    for at, is_held in ((105.0, True), (114.9, True), (115.1, False)):
        monotonic.now = at
        with pytest.raises(STORE_FAILURES):
            await heartbeat.tick()
        assert bool(rig.worker.held_claims()) is is_held
    await wait_until_async(lambda: rig.worker.in_flight == 0, "the work to end")
    await store.client_unpause()
    await impatient.aclose()


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """The logged events."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    out = io.StringIO()
    configure_logs(LogOptions(form="json"), out)
    yield out
    root.handlers[:] = before
    root.setLevel(level)


async def test_the_log_names_each_request_that_exceeds_the_redelivery_limit(store: Redis, lines: io.StringIO) -> None:
    rig = Rig(store)
    await rig.claimed(body("a"), body("b"))
    await end_leases(store, queue_keys(QUEUE).index)
    async with running(rig.ack_batcher.run()):
        await Reclaimer(store, table_of(rig), rig.log, max_deliveries=1).tick()
        await asyncio.wait_for(rig.ack_batcher.drained(), IN_TIME)
    logged = [json.loads(line) for line in lines.getvalue().splitlines()]
    exceeded = [line for line in logged if line["event"] == "redelivery limit exceeded"]
    assert sorted((line["id"], line["queue"], line["deliveries"]) for line in exceeded) == [
        ("a", QUEUE, 1), ("b", QUEUE, 1)
    ]  # fmt: skip


class Ticks:
    """Raises scripted errors, then nothing."""

    def __init__(self, *raised: Exception) -> None:
        self.raised = list(raised)
        self.count = 0

    async def tick(self) -> None:
        self.count += 1
        if self.raised:
            raise self.raised.pop(0)


def task(ticks: Ticks) -> PeriodicTask:
    return PeriodicTask("scan", 0.001, ticks.tick, get_logger("test"), (ConnectionError,))


async def test_a_task_continues_after_a_tick_that_raised(lines: io.StringIO) -> None:
    ticks = Ticks(ConnectionResetError(), ConnectionResetError(), ValueError("a defect"))
    work = asyncio.create_task(task(ticks).run())
    await wait_until_async(lambda: ticks.count >= 6, "six ticks")
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    logged = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert [line["event"] for line in logged] == [
        "work paused: Redis unavailable",
        "scan failed",
        "Redis available again",
    ]
    assert logged[0]["error"] == "ConnectionResetError", "logged once a row, not at every try"
    assert "a defect" in logged[1]["error"]


async def test_an_outage_is_logged_again_when_the_kind_of_reason_changes(lines: io.StringIO) -> None:
    refused = "Error 111 connecting to 10.0.0.1:6379. Connection refused."
    raised = [
        RedisConnectionError(refused),
        RedisTimeoutError("Timeout reading"),
        RedisConnectionError("Connection closed by server."),
        AuthenticationError("WRONGPASS invalid username-password pair"),
        AuthenticationError("WRONGPASS invalid username-password pair"),
        RedisConnectionError(refused),
        AuthenticationError("WRONGPASS invalid username-password pair"),
        BusyLoadingError("Redis is loading the dataset in memory"),
    ]
    ticks = Ticks(*raised)
    work = asyncio.create_task(PeriodicTask("scan", 0.001, ticks.tick, get_logger("test"), (RedisError,)).run())
    await wait_until_async(lambda: not ticks.raised and "again" in lines.getvalue(), "the end of the outage")
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    logged = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert [(line["event"], line.get("error", "")[:40]) for line in logged] == [
        ("work paused: Redis unavailable", "no connection to 10.0.0.1:6379: connecti"),
        ("work still paused: Redis unavailable", "the server refuses this user or password"),
        ("work still paused: Redis unavailable", "Redis is loading the dataset in memory"),
        ("Redis available again", ""),
    ]


async def test_a_cancellation_during_a_tick_ends_the_task() -> None:
    started = asyncio.Event()

    async def tick() -> None:
        started.set()
        await asyncio.Event().wait()

    work = asyncio.create_task(PeriodicTask("scan", 1.0, tick, get_logger("test"), ()).run())
    await started.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work


@pytest.mark.parametrize("seconds", [0, -1])
def test_an_interval_that_would_cause_a_busy_loop_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="scan"):
        PeriodicTask("scan", seconds, Ticks().tick, get_logger("test"), ())


@pytest.mark.parametrize("hidden", [ConnectionResetError, KeyError])
async def test_a_cancellation_raised_as_another_error_ends_the_task(
    hidden: type[Exception],
) -> None:
    started = asyncio.Event()

    async def tick() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise hidden from None

    work = asyncio.create_task(PeriodicTask("scan", 1.0, tick, get_logger("test"), (ConnectionError,)).run())
    await started.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(work, 60)
