"""Lets requests through the gates of one pool, and holds those that must wait: one coroutine each, no more.

For a door whose deliveries come by themselves (Pub/Sub push): a closed gate holds a delivery as long as the
door allows, rather than spend one of its attempts. The earliest deadline goes first. The poller needs none of
this: it claims only what may go.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, assert_never

from handlers.contract.request import Request
from handlers.gates.allowance import Allowance
from handlers.gates.chain import admit_all
from handlers.gates.gate import (
    CLOSED_RETRY_SECONDS,
    LOOK_AGAIN_SECONDS,
    Drop,
    Gate,
    Go,
    Hold,
    Refuse,
    Reservation,
)

Entrance: TypeAlias = Go | Refuse | Drop
"""A verdict after all waiting is over."""

MOST_HELD: Final = 1_000
_RETIRED: Final = Refuse(CLOSED_RETRY_SECONDS, "the gates have changed")


@dataclass(order=True, slots=True)
class _Waiting:
    deadline: float
    number: int
    granted: asyncio.Future[None]


class Doorkeeper:
    """One pool: its slots, and its gates in the order in which they are asked.

    `most_held` limits how many wait at a time; who comes after that is refused at once. Instants are Unix
    seconds of `clock`.
    """

    def __init__(
        self,
        gates: Sequence[Gate],
        *,
        slots: int,
        most_held: int = MOST_HELD,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._gates = gates
        self._most_held = most_held
        self._clock = clock
        self._allowance = Allowance(
            slots, lambda: tuple(share for gate in gates for share in gate.shares()), clock=clock
        )
        self._waiting: list[_Waiting] = []
        self._numbers = itertools.count()
        self._changed = asyncio.Event()
        self._handing_out: asyncio.Task[None] | None = None
        self._holding: set[asyncio.Timeout] = set()
        self._is_retired = False

    @property
    def in_flight(self) -> int:
        """Requests that were let through and are not over."""
        return self._allowance.in_use

    @property
    def held(self) -> int:
        """Requests that wait."""
        return len(self._holding)

    def take_over(self, before: Doorkeeper) -> None:
        """Go on with the slots that `before` has in use: ours are what those leave over."""
        self._allowance.take_over(before._allowance)

    def retire(self) -> None:
        """Refuse those that wait, at once, and all that come: another keeper stands here now."""
        self._is_retired = True
        now = asyncio.get_running_loop().time()
        for holding in self._holding:
            holding.reschedule(now)

    async def aclose(self) -> None:
        """Stop handing out slots; those that wait are the door's to cancel."""
        if self._handing_out is not None:
            self._handing_out.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._handing_out
            self._handing_out = None

    async def enter(self, request: Request, until_at: float) -> Entrance:
        """Wait until `request` may go, at most until `until_at`. A `Go` holds a slot until its release."""
        if self._is_retired:
            return _RETIRED
        if not self._waiting and self._allowance.room() > 0:
            self._allowance.started()
            verdict = await self._ask(request)
            if isinstance(verdict, Go | Drop):
                return verdict
            refusal = verdict
        else:
            refusal = Refuse(CLOSED_RETRY_SECONDS, "no room")
        if len(self._holding) >= self._most_held:
            return Refuse(CLOSED_RETRY_SECONDS, "too many are held")
        holding = asyncio.timeout(None)
        try:
            async with holding:
                self._holding.add(holding)
                return await self._hold(request, until_at, refusal)
        except TimeoutError:
            if not holding.expired():
                raise
            return _RETIRED
        finally:
            self._holding.discard(holding)

    async def _hold(self, request: Request, until_at: float, refusal: Hold | Refuse) -> Entrance:
        while await self._may_ask_again(refusal, until_at) and await self._is_granted(request, until_at):
            verdict = await self._ask(request)
            if isinstance(verdict, Go | Drop):
                return verdict
            refusal = verdict
        if isinstance(refusal, Refuse):
            return refusal
        return Refuse(CLOSED_RETRY_SECONDS, refusal.reason)

    async def _may_ask_again(self, refusal: Hold | Refuse, until_at: float) -> bool:
        match refusal:
            case Hold():
                return await refusal.wait_open(until_at)
            case Refuse(reason="no room"):
                return True  # waiting for a slot is all there is to it
            case Refuse(delay_seconds=delay_seconds):
                if self._clock() + delay_seconds >= until_at:
                    return False
                await asyncio.sleep(delay_seconds)
                return True
            case _:
                assert_never(refusal)

    async def _ask(self, request: Request) -> Go | Hold | Refuse | Drop:
        """The gates' verdict on a request that holds a slot; without a go the slot is free again."""
        is_in = False
        try:
            verdict = await admit_all(self._gates, request)
            if isinstance(verdict, Go):
                is_in = True
                return Go(_Slot(self._leave, verdict.reservation), verdict.labels)
            return verdict
        finally:
            if not is_in:
                self._leave()

    def _leave(self) -> None:
        self._allowance.finished()
        self._changed.set()

    async def _is_granted(self, request: Request, until_at: float) -> bool:
        left = until_at - self._clock()
        if left <= 0:
            return False
        one = _Waiting(request.deadline, next(self._numbers), asyncio.get_running_loop().create_future())
        heapq.heappush(self._waiting, one)
        self._changed.set()
        if self._handing_out is None or self._handing_out.done():
            self._handing_out = asyncio.create_task(self._hand_out(), name="hand out slots")
        is_taken = False
        try:
            async with asyncio.timeout(left):
                await one.granted
            is_taken = True
        except TimeoutError:
            pass
        finally:
            # The slot may have come in the same moment as the end of the time, or as a cancellation.
            if not is_taken and one.granted.done() and not one.granted.cancelled():
                self._leave()
        return is_taken

    async def _hand_out(self) -> None:
        """While somebody waits: give what room there is to the earliest deadline, and look again."""
        while self._waiting:
            self._changed.clear()
            self._forget_gone()
            for _ in range(self._allowance.room()):
                self._grant_next()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AGAIN_SECONDS):
                    await self._changed.wait()

    def _forget_gone(self) -> None:
        """Drop those that gave up: a gate that is closed for hours must not collect them."""
        self._waiting = [one for one in self._waiting if not one.granted.done()]
        heapq.heapify(self._waiting)

    def _grant_next(self) -> None:
        """A slot for the earliest deadline, counted from here on: nobody may come in between."""
        while self._waiting:
            one = heapq.heappop(self._waiting)
            if not one.granted.done():
                self._allowance.started()
                one.granted.set_result(None)
                return


class _Slot:
    """A slot and what the gates reserved; given back once."""

    def __init__(self, leave: Callable[[], None], reservation: Reservation) -> None:
        self._leave: Callable[[], None] | None = leave
        self._reservation = reservation

    async def release(self) -> None:
        """The request was sent, and is over."""
        if self._leave_once():
            await self._reservation.release()

    async def give_back(self) -> None:
        """The request was not sent."""
        if self._leave_once():
            await self._reservation.give_back()

    def _leave_once(self) -> bool:
        if self._leave is None:
            return False
        leave, self._leave = self._leave, None
        leave()
        return True
