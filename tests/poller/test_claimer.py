"""Claims: at most as many as free slots, in turn, earliest deadline first, through outages."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Collection, Sequence

import pytest
from redis.asyncio import Redis

from handlers.contract.request import Request, encode_retry
from handlers.contract.result import ErrorCode, answered_result
from handlers.demo.valkey import Valkey
from handlers.forward.middleware.breaker import Circuit, CircuitOptions, CircuitState
from handlers.forward.outcome import Answered, Outcome
from handlers.poller.priority import TierPriority
from handlers.poller.queue_watch import QueueWatch
from handlers.redis_store.admin.depths import existing
from handlers.redis_store.connection import RedisOptions, connect
from tests.poller.rig import IN_TIME, QUEUE, Rig, answering, body, claimer_of, running
from tests.redis_keys import claims_left
from tests.waiting import wait_until_async

RESERVED = {"classification": "reserved", "tier": "interactive"}


class Counting:
    """A handler that counts concurrent requests and answers when it is released."""

    def __init__(self) -> None:
        self.now = 0
        self.most = 0
        self.let_go = asyncio.Event()

    async def __call__(self, request: Request) -> Outcome:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self.let_go.wait()
        finally:
            self.now -= 1
        return Answered(answered_result(request.id, request.request_token, 200, b"{}"))


async def answered(*rigs: Rig, count: int) -> None:
    async def are_there() -> bool:
        return await rigs[0].result_count() >= count

    await wait_until_async(are_there, f"{count} results")
    for rig in rigs:
        await asyncio.wait_for(rig.ack_batcher.drained(), IN_TIME)


async def test_a_claimer_holds_as_many_requests_as_it_has_slots(store: Redis) -> None:
    """I10, and constant memory: unclaimed requests stay in Redis."""
    handler = Counting()
    rig = Rig(store, handler)
    pool = claimer_of(rig, slots=7)
    await rig.submit(*(body(f"r-{n}") for n in range(200)))
    async with running(rig.ack_batcher.run(), pool.run()):
        await wait_until_async(lambda: handler.now == 7, "seven in flight")
        assert await rig.pending() == 193
        handler.let_go.set()
        await answered(rig, count=200)
    assert handler.most == 7
    assert await claims_left(store, QUEUE) == {}


async def test_the_earliest_deadline_is_claimed_first(store: Redis) -> None:
    rig = Rig(store)
    pool = claimer_of(rig, slots=1)
    now = time.time()
    for n in (3, 1, 2, 0):
        await rig.submit(body(f"r-{n}", deadline=now + 100 + n), score=now + 100 + n)
    async with running(rig.ack_batcher.run(), pool.run()):
        await answered(rig, count=4)
    assert [request.id for request in rig.dispatched] == ["r-0", "r-1", "r-2", "r-3"]


async def test_queues_take_turns_if_slots_are_short(store: Redis) -> None:
    rigs = [Rig(store, name=name) for name in ("one", "two")]
    pool = claimer_of(*rigs, slots=2)
    for rig in rigs:
        await rig.submit(*(body(f"{rig.queue.name}-{n}") for n in range(40)))
    async with running(rigs[0].ack_batcher.run(), rigs[1].ack_batcher.run(), pool.run()):
        await wait_until_async(lambda: sum(len(r.dispatched) for r in rigs) >= 30, "30 dispatches")
        share = min(len(rig.dispatched) for rig in rigs)
        assert share >= 5, "neither queue holds the other up"
        await answered(*rigs, count=80)


async def test_a_request_that_expires_while_all_slots_are_taken_gets_its_result(store: Redis) -> None:
    handler = Counting()
    rig = Rig(store, handler)
    pool = claimer_of(rig, slots=1)
    await rig.submit(body("stuck"))
    async with running(rig.ack_batcher.run(), pool.run()):
        await wait_until_async(lambda: handler.now == 1, "the slot to be taken")
        await rig.submit(body("late", deadline=time.time() - 1), score=time.time() - 1)
        await answered(rig, count=1)
        (result,) = await rig.results()
        assert (result.id, result.error_code) == ("late", ErrorCode.DEADLINE_EXCEEDED)
        handler.let_go.set()
        await answered(rig, count=2)


async def test_a_request_that_expires_in_a_lane_without_turns_gets_its_result(store: Redis) -> None:
    """The lane above always has more requests, and each slot is taken as soon as it is free."""
    above, below = Rig(store, name="above", labels=RESERVED), Rig(store, name="below", labels={})
    pool = claimer_of(above, below, slots=1, merge=TierPriority())
    pool.queues["above"].change(labels=RESERVED)
    names = itertools.count()

    async def answer_and_queue_more(request: Request) -> Outcome:
        await above.submit(body(f"more-{next(names)}"))
        return await answering(request)

    above.handler = answer_and_queue_more
    await above.submit(body("a"), body("b"))
    async with running(above.ack_batcher.run(), below.ack_batcher.run(), pool.run()):
        await below.submit(body("late", deadline=time.time() - 1), score=time.time() - 1)
        await below.submit(body("waits"))
        await wait_until_async(lambda: below.settled, "the expired one's result")
    assert below.dispatched == []
    assert await below.pending() == 1


async def test_a_request_with_a_low_score_waits_for_a_slot(store: Redis) -> None:
    """A producer may choose any score, so a request that only looks expired waits for a slot."""
    handler = Counting()
    rig = Rig(store, handler)
    pool = claimer_of(rig, slots=2)
    await rig.submit(*(body(f"r-{n}") for n in range(30)), score=1.0)
    async with running(rig.ack_batcher.run(), pool.run()):
        await wait_until_async(lambda: handler.now == 2, "the slots to be taken")
        await wait_until_async(lambda: rig.settled, "a scan for expired requests")
        assert handler.now == 2
        handler.let_go.set()
        await answered(rig, count=30)
    assert handler.most == 2
    assert await claims_left(store, QUEUE) == {}


async def test_stop_ends_the_claiming_and_not_the_work(store: Redis) -> None:
    handler = Counting()
    rig = Rig(store, handler)
    pool = claimer_of(rig, slots=2)
    await rig.submit(*(body(f"r-{n}") for n in range(5)))
    async with running(rig.ack_batcher.run()):
        claiming = asyncio.create_task(pool.run())
        await wait_until_async(lambda: handler.now == 2, "two in flight")
        pool.stop()
        await asyncio.wait_for(claiming, IN_TIME)
        assert handler.now == 2
        handler.let_go.set()
        await answered(rig, count=2)
    assert await rig.pending() == 3


async def test_an_idle_pool_stops_at_once(store: Redis) -> None:
    pool = claimer_of(Rig(store), slots=2, poll_interval_seconds=60.0)
    claiming = asyncio.create_task(pool.run())
    await asyncio.sleep(0)
    pool.stop()
    await asyncio.wait({claiming}, timeout=IN_TIME)
    assert claiming.done()


async def test_claiming_continues_when_redis_is_back(valkey: Valkey, store: Redis) -> None:
    impatient = connect(RedisOptions(valkey.url, timeout_seconds=0.5))
    rig = Rig(impatient)
    pool = claimer_of(rig, slots=2)
    await Rig(store).submit(body("before"))
    async with running(rig.ack_batcher.run(), pool.run()):
        await wait_until_async(lambda: len(rig.settled) == 1, "the first answer")
        await store.client_pause(60_000, all=False)  # writes only: so it can be ended
        await wait_until_async(lambda: pool.is_waiting_for_store, "readiness to turn false")
        await store.client_unpause()
        await wait_until_async(lambda: not pool.is_waiting_for_store, "readiness to come back")
        await store.zadd(QUEUE, {body("after"): time.time() + 3_600})
        await wait_until_async(lambda: len(rig.settled) == 2, "the second answer")
    await impatient.aclose()


async def test_an_idle_pool_recovers_without_a_new_request(valkey: Valkey, store: Redis) -> None:
    """Also if the watch is the only part that calls Redis while the queues are empty."""
    impatient = connect(RedisOptions(valkey.url, timeout_seconds=0.5))
    rig, is_down = Rig(impatient), False

    async def find_existing(keys: Sequence[str]) -> Collection[str]:
        if is_down:
            raise ConnectionError
        return await existing(store, keys)

    watch = QueueWatch(find_existing, rig.log, poll_interval_seconds=0.005)
    pool = claimer_of(rig, slots=2, watch=watch)
    await Rig(store).submit(body("before"))
    async with running(rig.ack_batcher.run(), watch.run(), pool.run()):
        await wait_until_async(lambda: len(rig.settled) == 1, "the first answer")
        await store.client_pause(60_000, all=False)  # writes only: so it can be ended
        is_down = True
        await wait_until_async(lambda: pool.is_waiting_for_store, "readiness to turn false")
        is_down = False
        await store.client_unpause()
        await wait_until_async(lambda: not pool.is_waiting_for_store, "readiness to come back")
    await impatient.aclose()


async def test_claiming_ends_when_it_is_cancelled_at_any_moment(valkey: Valkey, store: Redis) -> None:
    """Also if the Redis library converts the cancellation to a connection error."""
    for n in range(60):
        client = connect(RedisOptions(valkey.url, timeout_seconds=60))
        claiming = asyncio.create_task(claimer_of(Rig(client), slots=2, poll_interval_seconds=0.0001).run())
        for _ in range(n % 30):
            await asyncio.sleep(0)
        await client.ping()
        claiming.cancel()
        await asyncio.wait([claiming], timeout=IN_TIME)
        assert claiming.cancelled()
        await client.aclose()


async def test_a_slot_is_taken_until_the_result_is_stored(store: Redis) -> None:
    """If results cannot be stored, no more requests are claimed or sent than there are slots."""
    rig = Rig(store)
    pool = claimer_of(rig, slots=5)
    await rig.submit(*(body(f"r-{n}") for n in range(50)))
    scans = itertools.count()

    async def has_polled_often() -> bool:
        return next(scans) > 30

    async with running(pool.run()):  # nothing settles them
        await wait_until_async(lambda: rig.worker.in_flight == 0 and rig.dispatched, "outcomes")
        await wait_until_async(has_polled_often, "time for more claims")
        assert (len(rig.dispatched), await rig.pending(), pool.in_flight) == (5, 45, 5)
        async with running(rig.ack_batcher.run()):
            await answered(rig, count=50)
    assert len(rig.dispatched) == 50


async def test_while_expired_requests_wait_for_their_results_no_more_of_them_are_claimed(
    store: Redis,
) -> None:
    rig = Rig(store)
    await rig.submit(*(body(f"r-{n}", deadline=1) for n in range(3)), score=1)
    await rig.worker.answer_expired(await rig.queue.claim(3, only_expired=True))
    assert rig.worker.is_settling_without_slots
    async with running(rig.ack_batcher.run()):
        await answered(rig, count=3)
    assert not rig.worker.is_settling_without_slots


def retried(request_id: str, attempt: int = 1) -> bytes:
    return encode_retry(body(request_id), queue=QUEUE, attempt=attempt, score=1.0)


async def test_retries_take_half_of_the_slots_while_other_requests_wait(store: Redis) -> None:
    """In the order of their deadlines within each half."""
    handler = Counting()
    rig = Rig(store, handler)
    pool = claimer_of(rig, slots=8)
    for n in range(50):
        await rig.submit(retried(f"again-{n}"), score=1_000.0 + n)
        await rig.submit(body(f"new-{n}"), score=2_000.0 + n)
    async with running(rig.ack_batcher.run(), pool.run()):
        await wait_until_async(lambda: handler.now == 8, "eight in flight")
        held = {request.id for request in rig.dispatched}
        assert held == {f"{kind}-{n}" for kind in ("again", "new") for n in range(4)}
        handler.let_go.set()
        await answered(rig, count=100)
    order = [int(request.id.removeprefix("new-")) for request in rig.dispatched if request.attempt == 0]
    assert order[:4] == [0, 1, 2, 3]


async def test_retries_use_all_slots_if_no_other_request_waits(store: Redis) -> None:
    handler = Counting()
    rig = Rig(store, handler)
    pool = claimer_of(rig, slots=8)
    await rig.submit(*(retried(f"again-{n}") for n in range(20)))
    async with running(rig.ack_batcher.run(), pool.run()):
        await wait_until_async(lambda: handler.now == 8, "eight in flight")
        handler.let_go.set()
        await answered(rig, count=20)


@pytest.mark.parametrize("retries_around", [0, 10])
async def test_while_the_circuit_is_open_one_request_is_claimed_from_the_queues_end(
    store: Redis, retries_around: int
) -> None:
    """Those at its head may be of a kind that always fails, and so may retries anywhere."""
    now = 0.0
    circuit = Circuit(CircuitOptions(), lambda: now)
    while circuit.state is not CircuitState.OPEN:
        entered = circuit.enter()
        assert entered is not None
        circuit.leave(entered, has_failed=True, request=await store.incr("number"))
    handler = Counting()
    rig = Rig(store, handler)
    pool = claimer_of(rig, slots=8)
    pool.queues[QUEUE].change(circuit=circuit)
    for n in range(10):
        await rig.submit(body(f"r-{n}"), score=1_000.0 + n)
    for n in range(retries_around):
        await rig.submit(retried(f"before-{n}"), score=500.0 + n)
        await rig.submit(retried(f"after-{n}"), score=2_000.0 + n)
    async with running(rig.ack_batcher.run(), pool.run()):
        now = CircuitOptions().probe_seconds
        await wait_until_async(lambda: handler.now == 1, "one in flight")
        assert rig.dispatched[0].id == "r-9"
        assert circuit.claimable() == 0
