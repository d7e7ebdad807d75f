"""`local-max-concurrency` never exceeds its limit and gets every slot back."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from handlers.gates.gate import Go, Hold, Refuse
from handlers.gates.quota.local_concurrency import LocalConcurrencyGate, Waiters
from tests.gates.building import gate, request


def local(limit: int, mode: str = "classifying") -> LocalConcurrencyGate:
    built = gate("local-max-concurrency", {"limit": limit, "gating_mode": mode})
    assert isinstance(built, LocalConcurrencyGate)
    return built


@given(st.integers(1, 5), st.lists(st.booleans(), max_size=60))
async def test_requests_in_flight_never_exceed_the_limit(limit: int, is_entering: list[bool]) -> None:
    built = local(limit)
    inside: list[Go] = []
    for enters in is_entering:
        if enters:
            verdict = await built.admit(request())
            if isinstance(verdict, Go):
                inside.append(verdict)
            else:
                assert isinstance(verdict, Refuse)
                assert len(inside) == limit
        elif inside:
            await inside.pop().reservation.release()
        assert built.in_use == len(inside) <= limit
        assert built.room() == limit - len(inside)


async def test_a_slot_that_is_released_twice_is_freed_once() -> None:
    built = local(2)
    first, second = await built.admit(request("a")), await built.admit(request("b"))
    assert isinstance(first, Go)
    assert isinstance(second, Go)
    await first.reservation.release()
    await first.reservation.release()
    await first.reservation.give_back()
    assert built.in_use == 1


async def test_blocking_admits_waiting_requests_in_order() -> None:
    built = local(1, "blocking")
    first = await built.admit(request())
    assert isinstance(first, Go)
    order: list[int] = []

    async def enter(number: int) -> None:
        while isinstance(verdict := await built.admit(request(str(number))), Hold):
            assert await verdict.wait_open(time.time() + 600)
        assert isinstance(verdict, Go)
        order.append(number)
        await verdict.reservation.release()

    waiting = [asyncio.create_task(enter(number)) for number in range(5)]
    await asyncio.sleep(0)
    assert built.state().figures["waiting"] == 5
    await first.reservation.release()
    await asyncio.gather(*waiting)
    assert order == list(range(5))
    assert built.in_use == 0


async def test_waiting_ends_at_its_time_limit() -> None:
    built = local(1, "blocking")
    await built.admit(request())
    verdict = await built.admit(request("b"))
    assert isinstance(verdict, Hold)
    assert not await verdict.wait_open(time.time() + 0.01)
    assert built.state().figures["waiting"] == 0


async def test_a_cancelled_waiter_passes_its_slot_on() -> None:
    waiters = Waiters()
    woken: Counter[str] = Counter()

    async def wait(name: str) -> None:
        woken[name] += await waiters.wait(time.time() + 600)

    first, second = asyncio.create_task(wait("first")), asyncio.create_task(wait("second"))
    await asyncio.sleep(0)
    waiters.wake()
    first.cancel()  # at the same moment: the slot was already granted to it
    await second
    assert woken == {"second": 1}
    assert len(waiters) == 0
