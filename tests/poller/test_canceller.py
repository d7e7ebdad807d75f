"""What is taken back is answered by one look: what waits without a slot, what is held once its work has ended."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from handlers.contract.request import Request
from handlers.contract.result import ErrorCode
from handlers.forward.outcome import Outcome
from handlers.poller import worker as worker
from handlers.poller.maintenance import Canceller
from handlers.redis_store.keys import active_key
from handlers.redis_store.submit.submissions import Submissions
from tests.poller.rig import IN_TIME, Rig, running
from tests.poller.tables import table_of
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
    """A handler that ends when it may, as one that gives back a slot first; `stops` are its cancellations."""

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


async def test_what_waits_is_answered_by_one_look_however_much_it_is(store: Redis) -> None:
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


async def test_who_stops_leaves_what_waits_to_others_and_answers_what_it_holds(store: Redis) -> None:
    handler = Slow()
    rig = Rig(store, handler)
    await submitted(rig, 1, 2)
    rig.worker.start(await rig.queue.claim(1))
    await wait_until_async(lambda: bool(rig.dispatched), "the first under way")
    await cancelled(rig, 1, 2)
    async with running(rig.ack_batcher.run()):
        await canceller_of(rig, is_stopping=True).tick()
        handler.may_end.set()
        await wait_until_async(lambda: rig.worker.in_flight == 0, "its work to end")
        await asyncio.wait_for(rig.ack_batcher.drained(), IN_TIME)
    (result,) = await rig.results()
    assert (result.id, await rig.pending()) == ("r-1", 1)


@pytest.mark.parametrize(("pause_seconds", "stops"), [(worker.CANCEL_AGAIN_SECONDS, 1), (0.0, 2)])
async def test_work_that_is_ending_is_stopped_again_only_after_a_while(
    store: Redis, monkeypatch: pytest.MonkeyPatch, pause_seconds: float, stops: int
) -> None:
    monkeypatch.setattr(worker, "CANCEL_AGAIN_SECONDS", pause_seconds)
    handler = Slow()
    rig = Rig(store, handler)
    canceller = canceller_of(rig)
    await submitted(rig, 1)
    rig.worker.start(await rig.queue.claim(1))
    await wait_until_async(lambda: bool(rig.dispatched), "the request under way")
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
