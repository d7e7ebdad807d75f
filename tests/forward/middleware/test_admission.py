"""A request that waits at a gate continues under the gates of a changed configuration, whatever has changed."""

from __future__ import annotations

import asyncio
import itertools
import time

import msgspec
import pytest

from handlers.contract.request import Request
from handlers.contract.result import Result
from handlers.forward.forward import AttemptOptions
from handlers.forward.middleware.admission import Entrance, HeldForward
from handlers.forward.outcome import Answered, Outcome, Retry
from handlers.gates.gate import Feedback, Gate, Verdict
from handlers.gates.waiting_room import WaitingRoom
from tests.gates.building import request
from tests.waiting import wait_until_async


class Closed(Gate):
    """A closed gate."""

    gate_type = "closed"

    def budget(self) -> float:
        return 0.0


class Gateway:
    """A scripted forward; `sent` are the ids."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.options: list[AttemptOptions] = []

    async def forward(self, request: Request, options: AttemptOptions) -> Outcome:
        self.sent.append(request.id)
        self.options.append(options)
        return Answered(Result(request.id, status_code=200, payload="{}"), Feedback(200))


def entrance(*gates: Gate, slots: int = 4) -> Entrance:
    """One waiting room for each gate."""
    return Entrance([WaitingRoom([gate], slots=slots) for gate in gates], list(gates))


def waiting_in(one: Entrance) -> int:
    return sum(room.held for room in one.rooms)


class Open(Gate):
    """An open gate."""

    gate_type = "open"


def pushed(request_id: str) -> Request:
    return msgspec.structs.replace(request(request_id), queue="s")


@pytest.mark.parametrize("rooms", [(Closed(),), (Open(), Closed())], ids=["own", "pool"])
@pytest.mark.parametrize("change", ["opened", "removed", "renamed"])
async def test_a_waiting_request_follows_the_gates_of_the_changed_configuration(
    rooms: tuple[Gate, ...], change: str
) -> None:
    old, new = Gateway(), Gateway()
    closed = entrance(*rooms)
    held = HeldForward(old.forward, {"s": closed})
    waiting = asyncio.create_task(held.forward(pushed("r"), AttemptOptions(seconds=3_000)))
    await wait_until_async(lambda: waiting_in(closed) == 1, "the request to wait")
    after = {
        "opened": {"s": entrance(Open())},
        "removed": {},
        "renamed": {"t": entrance(Closed())},
    }
    held.change(new.forward, after[change])
    assert isinstance(await asyncio.wait_for(waiting, 60), Answered)
    assert (old.sent, new.sent) == ([], ["r"])
    assert [room.in_flight for room in closed.rooms] == [0] * len(rooms), "no slot stays taken"


async def test_a_waiting_request_waits_again_at_a_closed_gate_and_for_no_longer() -> None:
    gateway, first, second = Gateway(), entrance(Closed()), entrance(Closed())
    held = HeldForward(gateway.forward, {"s": first}, most_held_seconds=0.5)
    waiting = asyncio.create_task(held.forward(pushed("r"), AttemptOptions(seconds=3_000)))
    await wait_until_async(lambda: waiting_in(first) == 1, "the request to wait")
    held.change(gateway.forward, {"s": second})
    outcome = await asyncio.wait_for(waiting, 60)
    assert isinstance(outcome, Retry)
    assert not outcome.counts_attempt
    assert gateway.sent == []


async def test_a_clock_that_is_set_back_during_a_wait_gives_an_attempt_no_more_time() -> None:
    """Else it would continue after the ack deadline, and its redelivery would be sent as well."""
    gateway, room, days = Gateway(), entrance(Open()), itertools.count()
    held = HeldForward(gateway.forward, {"s": room}, lambda: time.time() - 86_400 * next(days))
    await held.forward(pushed("r"), AttemptOptions(seconds=3_000))
    assert [0 <= (options.seconds or 0) <= 3_000 for options in gateway.options] == [True]


async def test_a_request_on_its_way_to_a_second_room_enters_the_changed_rooms() -> None:
    """It has a slot of the first room when the configuration changes, and the second room is no more."""
    gateway, entered, may_go = Gateway(), asyncio.Event(), asyncio.Event()

    class Slow(Gate):
        gate_type = "slow"

        async def admit(self, request: Request) -> Verdict:
            entered.set()
            await may_go.wait()
            return await super().admit(request)

    before = entrance(Slow(), Closed())
    held = HeldForward(gateway.forward, {"s": before})
    waiting = asyncio.create_task(held.forward(pushed("r"), AttemptOptions(seconds=3_000)))
    await entered.wait()
    held.change(gateway.forward, {"s": entrance(Open())})
    may_go.set()
    assert isinstance(await asyncio.wait_for(waiting, 60), Answered)
    assert [room.in_flight for room in before.rooms] == [0, 0]
