"""A push door's waiting room, which holds requests until gates admit them.

A nack uses up one of a push's delivery attempts. So a request at a closed gate waits here as long as the door allows,
which costs one coroutine. Requests are admitted in the order of their deadlines. The poller needs no waiting room,
because it claims only as many requests as may be sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias, assert_never

import msgspec

from handlers.cancellation import end_if_cancelled
from handlers.contract.request import Request
from handlers.gates.allowance import Allowance, all_shares
from handlers.gates.chain import admit_all
from handlers.gates.gate import (
    CLOSED_RETRY_SECONDS,
    POLL_SECONDS,
    CountedSlot,
    Drop,
    Gate,
    Go,
    Hold,
    Refuse,
    Reservation,
)

Admission: TypeAlias = Go | Refuse | Drop
"""The verdict on a request after waiting."""

MOST_HELD: Final = 1_000
INTERRUPTED: Final = Refuse(CLOSED_RETRY_SECONDS, "configuration changed")
"""The verdict on a request that was waiting during an interruption: call `enter` again."""


class _Waiting(msgspec.Struct, order=True):
    deadline: float
    number: int
    granted: asyncio.Future[None]


class WaitingRoom:
    """Slots and gates of one pool or subscription, and its waiting requests.

    At most `most_held` requests wait at a time; further ones are refused at once. Times are Unix seconds.
    """

    def __init__(
        self,
        gates: Sequence[Gate],
        *,
        slots: int,
        most_held: int = MOST_HELD,
    ) -> None:
        self._gates = gates
        self._most_held = most_held
        self._allowance = Allowance(slots, all_shares(gates))
        self._waiting: list[_Waiting] = []
        self._numbers = itertools.count()
        self._changed = asyncio.Event()
        self._handing_out: asyncio.Task[None] | None = None
        self._holding: set[asyncio.Timeout] = set()
        self._interruptions = 0

    @property
    def in_flight(self) -> int:
        """The number of admitted requests that have not ended."""
        return self._allowance.in_use

    @property
    def held(self) -> int:
        return len(self._holding)

    def change(self, gates: Sequence[Gate], *, slots: int, most_held: int = MOST_HELD) -> None:
        """Apply other gates and limits. Slots in use stay counted."""
        self._gates, self._most_held = gates, most_held
        self._allowance.change(slots, all_shares(gates))
        self._changed.set()

    def interrupt(self) -> None:
        """End the wait of every waiting request, with the verdict `INTERRUPTED`."""
        self._interruptions += 1
        now = asyncio.get_running_loop().time()
        for holding in self._holding:
            holding.reschedule(now)

    async def aclose(self) -> None:
        """Stop handing out slots. The door cancels the waiting requests."""
        if self._handing_out is not None:
            self._handing_out.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._handing_out
            self._handing_out = None

    async def enter(self, request: Request, until_at: float) -> Admission:
        """Wait until `request` is admitted, at most until `until_at`.

        A request admitted with `Go` holds a slot until its reservation is released.
        """
        if not self._waiting and self._allowance.room() > 0:
            self._allowance.started()
            interruptions = self._interruptions
            verdict = await self._ask(request)
            if isinstance(verdict, Go | Drop):
                return verdict
            if interruptions != self._interruptions:
                return INTERRUPTED
            refusal = verdict
        else:
            refusal = Refuse(CLOSED_RETRY_SECONDS, "no room")
        if len(self._holding) >= self._most_held:
            return Refuse(CLOSED_RETRY_SECONDS, "too many requests wait")
        holding = asyncio.timeout(None)
        try:
            async with holding:
                self._holding.add(holding)
                return await self._hold(request, until_at, refusal)
        except TimeoutError:
            if not holding.expired():
                raise
            return INTERRUPTED
        finally:
            self._holding.discard(holding)

    async def _hold(self, request: Request, until_at: float, refusal: Hold | Refuse) -> Admission:
        while await self._may_ask_again(refusal, until_at) and await self._is_granted(request, until_at):
            verdict = await self._ask(request)
            if isinstance(verdict, Go | Drop):
                return verdict
            end_if_cancelled()  # `interrupt` also cancels, by a timeout
            refusal = verdict
        if isinstance(refusal, Refuse):
            return refusal
        return Refuse(CLOSED_RETRY_SECONDS, refusal.reason)

    async def _may_ask_again(self, refusal: Hold | Refuse, until_at: float) -> bool:
        match refusal:
            case Hold():
                return await refusal.wait_open(until_at)
            case Refuse(reason="no room"):
                return True
            case Refuse(delay_seconds=delay_seconds):
                if time.time() + delay_seconds >= until_at:
                    return False
                await asyncio.sleep(delay_seconds)
                return True
            case _:
                assert_never(refusal)

    async def _ask(self, request: Request) -> Go | Hold | Refuse | Drop:
        """Ask the gates about a request that holds a slot. Unless `Go`, free the slot."""
        is_admitted = False
        try:
            verdict = await admit_all(self._gates, request)
            if isinstance(verdict, Go):
                is_admitted = True
                return Go(_HeldSlot(self._leave, verdict.reservation), verdict.labels)
            return verdict
        finally:
            if not is_admitted:
                self._leave()

    def _leave(self) -> None:
        self._allowance.finished()
        self._changed.set()

    async def _is_granted(self, request: Request, until_at: float) -> bool:
        left = until_at - time.time()
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
            # The slot may be granted in the same loop turn as the timeout or a cancellation.
            if not is_taken and one.granted.done() and not one.granted.cancelled():
                self._leave()
        return is_taken

    async def _hand_out(self) -> None:
        """While requests wait, grant free slots to the earliest deadlines."""
        while self._waiting:
            self._changed.clear()
            self._forget_gone()
            for _ in range(self._allowance.room()):
                self._grant_next()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await self._changed.wait()

    def _forget_gone(self) -> None:
        """Remove requests that have stopped waiting. At a closed gate they would accumulate."""
        self._waiting = [one for one in self._waiting if not one.granted.done()]
        heapq.heapify(self._waiting)

    def _grant_next(self) -> None:
        """Grant a slot to the earliest deadline. It counts as in use at once."""
        while self._waiting:
            one = heapq.heappop(self._waiting)
            if not one.granted.done():
                self._allowance.started()
                one.granted.set_result(None)
                return


class _HeldSlot(CountedSlot):
    """A slot and the reservations at its gates."""

    def __init__(self, leave: Callable[[], None], reservation: Reservation) -> None:
        super().__init__(leave)
        self._reservation = reservation

    async def release(self) -> None:
        if self.leave_once():
            await self._reservation.release()

    async def give_back(self) -> None:
        if self.leave_once():
            await self._reservation.give_back()
