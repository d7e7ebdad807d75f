"""The door's side of a pool: slots, holding, and nothing lost on any way out."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time

import pytest

from handlers.contract.request import Request
from handlers.forward.middleware.admission import gated
from handlers.forward.outcome import Outcome
from handlers.gates.gate import Drop, Gate, Go, Hold, Refuse, Verdict
from handlers.gates.waiting_room import INTERRUPTED, WaitingRoom
from tests.gates.building import gate, request
from tests.waiting import wait_until_async


class Switch(Gate):
    """A budget that a test sets."""

    gate_type = "switch"

    def __init__(self, part: float) -> None:
        self.part = part

    def budget(self) -> float:
        return self.part


class Always(Gate):
    """One verdict for all."""

    gate_type = "always"

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict

    async def admit(self, request: Request) -> Verdict:
        return self.verdict


def soon(seconds: float = 3_600) -> float:
    return time.time() + seconds


async def entered(waiting_room: WaitingRoom, request_id: str = "r", until_at: float | None = None) -> Go:
    verdict = await waiting_room.enter(request(request_id), soon() if until_at is None else until_at)
    assert isinstance(verdict, Go)
    return verdict


async def test_a_closed_gate_holds_a_delivery_until_it_opens() -> None:
    switch = Switch(0.0)
    waiting_room = WaitingRoom([switch], slots=4)
    waiting = [asyncio.create_task(entered(waiting_room, str(n))) for n in range(4)]
    await wait_until_async(lambda: waiting_room.held == 4, "all to be held")
    assert waiting_room.in_flight == 0
    switch.part = 0.5
    await wait_until_async(lambda: waiting_room.in_flight == 2, "half of the slots to be used")
    switch.part = 1.0
    inside = await asyncio.gather(*waiting)
    for one in inside:
        await one.reservation.release()
    assert (waiting_room.in_flight, waiting_room.held) == (0, 0)
    await waiting_room.aclose()


async def test_a_delivery_is_refused_when_its_time_at_the_gate_is_over() -> None:
    waiting_room = WaitingRoom([Switch(0.0)], slots=4)
    verdict = await waiting_room.enter(request(), soon(0.05))
    assert isinstance(verdict, Refuse)
    assert (waiting_room.in_flight, waiting_room.held) == (0, 0)
    await waiting_room.aclose()


async def test_requests_over_the_limit_of_held_ones_are_refused_at_once() -> None:
    waiting_room = WaitingRoom([Switch(0.0)], slots=4, most_held=2)
    waiting = [asyncio.create_task(waiting_room.enter(request(str(n)), soon())) for n in range(2)]
    await wait_until_async(lambda: waiting_room.held == 2, "both to be held")
    verdict = await waiting_room.enter(request("third"), soon())
    assert isinstance(verdict, Refuse)
    assert verdict.reason == "too many requests wait"
    for one in waiting:
        one.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert waiting_room.held == 0
    await waiting_room.aclose()


async def test_held_requests_are_sent_in_the_order_of_their_deadlines() -> None:
    waiting_room = WaitingRoom([], slots=1)
    first = await entered(waiting_room)
    order: list[str] = []

    async def enter(name: str, deadline: float) -> None:
        verdict = await waiting_room.enter(request(name, deadline=deadline), soon())
        assert isinstance(verdict, Go)
        order.append(name)
        await verdict.reservation.release()

    now = time.time()
    names = ["late", "soon", "middle"]
    waiting = [asyncio.create_task(enter(n, now + s)) for n, s in zip(names, (300, 100, 200), strict=True)]
    await wait_until_async(lambda: waiting_room.held == 3, "all to be held")
    await first.reservation.release()
    await asyncio.gather(*waiting)
    assert order == ["soon", "middle", "late"]
    await waiting_room.aclose()


async def test_a_drop_is_returned_at_once_and_holds_no_slot() -> None:
    waiting_room = WaitingRoom([Always(Drop(429, "saturated"))], slots=1)
    assert await waiting_room.enter(request(), soon()) == Drop(429, "saturated")
    assert waiting_room.in_flight == 0


@pytest.mark.parametrize(("delay", "is_waited_for"), [(0.01, True), (3_600.0, False)])
async def test_a_request_waits_out_the_delay_of_a_refusal_that_ends_before_its_deadline(
    delay: float, is_waited_for: bool
) -> None:
    always = Always(Refuse(delay, "over quota"))
    waiting_room = WaitingRoom([always], slots=1)
    entering = asyncio.create_task(waiting_room.enter(request(), soon(600)))
    await asyncio.sleep(0)
    always.verdict = Go()
    verdict = await entering
    assert isinstance(verdict, Go) is is_waited_for
    if isinstance(verdict, Refuse):
        assert verdict.delay_seconds == delay
    await waiting_room.aclose()


async def test_a_full_admission_gate_holds_without_holding_a_slot() -> None:
    narrow = gate("local-max-concurrency", {"limit": 1, "gating_mode": "blocking"})
    waiting_room = WaitingRoom([narrow], slots=3)
    first = await entered(waiting_room)
    waiting = asyncio.create_task(entered(waiting_room, "b"))
    await wait_until_async(lambda: waiting_room.held == 1, "the second to be held")
    assert waiting_room.in_flight == 1
    await first.reservation.release()
    await (await waiting).reservation.release()
    assert waiting_room.in_flight == 0
    await waiting_room.aclose()


async def test_no_slot_is_lost_or_used_twice_for_any_outcome() -> None:
    """Requests that finish, give up or are cancelled at any moment, while the gate opens and closes."""
    rng = random.Random(7)
    switch = Switch(1.0)
    waiting_room = WaitingRoom([switch, gate("local-max-concurrency", {"limit": 5})], slots=8)
    most = 0

    async def one(number: int) -> None:
        nonlocal most
        verdict = await waiting_room.enter(request(str(number)), soon(rng.choice([0.0, 0.005, 5])))
        if isinstance(verdict, Go):
            most = max(most, waiting_room.in_flight)
            try:
                for _ in range(rng.randrange(4)):
                    await asyncio.sleep(0)
            finally:
                await (verdict.reservation.release() if rng.random() < 0.5 else verdict.reservation.give_back())

    tasks = []
    for number in range(300):
        tasks.append(asyncio.create_task(one(number)))
        if rng.random() < 0.3:
            rng.choice(tasks).cancel()
        if number % 10 == 0:
            switch.part = rng.choice([0.0, 0.3, 1.0])
        await asyncio.sleep(0)
    switch.part = 1.0
    await asyncio.gather(*tasks, return_exceptions=True)
    assert most <= 8
    assert (waiting_room.in_flight, waiting_room.held) == (0, 0)
    await waiting_room.aclose()


@pytest.mark.parametrize("steps", range(10))
async def test_a_slot_granted_during_a_cancellation_is_passed_on(steps: int) -> None:
    waiting_room = WaitingRoom([], slots=1)
    first = await entered(waiting_room)
    cancelled = asyncio.create_task(entered(waiting_room, "cancelled"))
    await wait_until_async(lambda: waiting_room.held == 1, "the second to be held")
    await asyncio.sleep(0)
    await first.reservation.release()
    for _ in range(steps):
        await asyncio.sleep(0)
    cancelled.cancel()
    (outcome,) = await asyncio.gather(cancelled, return_exceptions=True)
    if isinstance(outcome, Go):
        await outcome.reservation.release()
    last = await entered(waiting_room, "last")
    await last.reservation.release()
    assert (waiting_room.in_flight, waiting_room.held) == (0, 0)
    await waiting_room.aclose()


async def test_an_interruption_ends_current_waits_but_not_later_ones() -> None:
    room = WaitingRoom([Switch(0.0)], slots=4)
    waiting = [asyncio.create_task(room.enter(request(str(n)), soon())) for n in range(3)]
    sleeping = WaitingRoom([Always(Refuse(600.0, "over quota"))], slots=4)
    waiting.append(asyncio.create_task(sleeping.enter(request("sleeps"), soon())))
    await wait_until_async(lambda: room.held + sleeping.held == 4, "all to be held")
    room.interrupt()
    sleeping.interrupt()
    verdicts = await asyncio.wait_for(asyncio.gather(*waiting), 60)
    assert all(one is INTERRUPTED for one in verdicts)
    later = asyncio.create_task(room.enter(request(), soon()))
    await wait_until_async(lambda: room.held == 1, "a later request to be held")
    later.cancel()
    await asyncio.gather(later, return_exceptions=True)
    assert (room.held, room.in_flight, sleeping.held, sleeping.in_flight) == (0, 0, 0, 0)
    await room.aclose()
    await sleeping.aclose()


async def test_a_request_that_its_gate_was_deciding_on_is_interrupted_too() -> None:
    deciding = Deciding()
    room = WaitingRoom([deciding], slots=1)
    entering = asyncio.create_task(room.enter(request(), soon(3_600)))
    await deciding.asked.wait()
    room.interrupt()
    deciding.may_answer.set()
    assert await asyncio.wait_for(entering, 60) is INTERRUPTED
    assert room.in_flight == 0


async def test_slots_in_use_count_against_the_changed_limits_of_a_room() -> None:
    room = WaitingRoom([], slots=2)
    inside = [await entered(room, str(n)) for n in range(2)]
    room.change([], slots=3)
    third = await entered(room, "third")
    fourth = asyncio.create_task(entered(room, "fourth"))
    await wait_until_async(lambda: room.held == 1, "the fourth to be held")
    await inside[0].reservation.release()
    for one in (inside[1], third, await asyncio.wait_for(fourth, 60)):
        await one.reservation.release()
    assert room.in_flight == 0
    await room.aclose()


class Deciding(Gate):
    """Refuses by a `Hold` that never opens, once `may_answer` is set."""

    gate_type = "deciding"

    def __init__(self) -> None:
        self.asked, self.may_answer = asyncio.Event(), asyncio.Event()

    async def admit(self, request: Request) -> Verdict:
        self.asked.set()
        await self.may_answer.wait()
        return Hold("closed", self.wait_open)

    async def wait_open(self, until_at: float) -> bool:
        await asyncio.Event().wait()
        return True


class SwallowsFirst(Gate):
    """Answers the first cancellation with a `Hold`, like a library that swallows it, and stays closed."""

    gate_type = "swallows-first"

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def admit(self, request: Request) -> Verdict:
        self.asked.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return Hold("closed", self.wait_open)

    async def wait_open(self, until_at: float) -> bool:
        await asyncio.Event().wait()
        return True


class RefusesFirst(SwallowsFirst):
    """Refuses while `is_refusing`, so that the request is held before the gate is asked again."""

    is_refusing = True

    async def admit(self, request: Request) -> Verdict:
        return Refuse(0.0, "not yet") if self.is_refusing else await super().admit(request)


async def test_a_cancellation_that_a_gate_swallows_ends_the_wait_of_a_claim() -> None:
    closed = SwallowsFirst()

    async def send(_request: Request) -> Outcome:
        raise AssertionError("a cancelled request is not sent")

    work = asyncio.create_task(gated(request("r"), [closed], send))
    await closed.asked.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(asyncio.shield(work), 60)


async def test_an_interruption_that_a_gate_swallows_still_ends_the_wait() -> None:
    closed = RefusesFirst()
    waiting_room = WaitingRoom([closed], slots=1)
    entering = asyncio.create_task(waiting_room.enter(request("r"), soon(3_600)))
    await wait_until_async(lambda: waiting_room.held == 1, "the event to be held")
    closed.is_refusing = False
    await closed.asked.wait()
    waiting_room.interrupt()
    assert await asyncio.wait_for(entering, 60) is INTERRUPTED
