"""Admission: a request is sent once its gates admit it.

Gates learn from the response and get back what they reserved. Verdicts become outcomes here, for the poller and for
the doors.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final, assert_never

import msgspec

from handlers.cancellation import end_if_cancelled
from handlers.contract.request import Request
from handlers.contract.result import ErrorCode, error_result
from handlers.forward.forward import AttemptOptions, Forward, expired
from handlers.forward.outcome import Answered, Outcome, Retry
from handlers.gates.chain import Reservations, admit_all, with_claim
from handlers.gates.gate import Drop, Gate, Go, Hold, Refuse, Reservation
from handlers.gates.labels import labelled
from handlers.gates.waiting_room import INTERRUPTED, WaitingRoom

Send = Callable[[Request], Awaitable[Outcome]]
"""Makes one attempt for an admitted request."""

GATE_CLOSED: Final = "gate_closed"
QUOTA_EXHAUSTED: Final = "quota_exhausted"


def admitted(forward: Forward, gates: Sequence[Gate], clock: Callable[[], float] = time.time) -> Forward:
    """The admission layer of a poller, whose requests wait at a closed gate until their deadline."""

    async def admit(request: Request, options: AttemptOptions) -> Outcome:
        async def send(request: Request) -> Outcome:
            if options.on_sending is not None:
                options.on_sending()
            return await forward(request, options)

        return await (gated(request, gates, send, clock) if gates else send(request))

    return admit


async def gated(
    request: Request, gates: Sequence[Gate], send: Send, clock: Callable[[], float] = time.time
) -> Outcome:
    """Ask the gates, wait until they admit the request or its deadline, and send it.

    `clock` gives Unix seconds, for the deadline; gates wait by the local clock. A refusal is a retry that does not
    count as an attempt. A drop is a final `GATE_DROPPED`.
    """
    request = with_claim(request)
    while True:
        verdict = await admit_all(gates, request)
        if isinstance(verdict, Hold):
            end_if_cancelled()  # otherwise it would wait at the gate of a poller that is stopping
        match verdict:
            case Go():
                return await send_admitted(request, gates, verdict, send)
            case Hold(wait_open=wait_open):
                if not await wait_open(time.time() + request.deadline - clock()):
                    return expired(request, None)
            case Refuse() | Drop():
                return refused(request, verdict, clock)
            case _:
                assert_never(verdict)


async def send_admitted(request: Request, gates: Sequence[Gate], go: Go, send: Send) -> Outcome:
    """Send an admitted request, then release its reservation exactly once."""
    admitted = labelled(request, go.labels)
    was_sent = True
    try:
        outcome = await send(admitted)
        was_sent = outcome.feedback is not None or isinstance(outcome, Answered)
        if outcome.feedback is not None:
            for gate in gates:
                gate.observe(admitted, outcome.feedback)
    finally:
        # A request cancelled during the call counts as sent, because it may have reached the gateway.
        await (go.reservation.release() if was_sent else go.reservation.give_back())
    return outcome


def refused(request: Request, verdict: Refuse | Drop, clock: Callable[[], float] = time.time) -> Outcome:
    """Convert a verdict that ends the wait to an outcome."""
    match verdict:
        case Refuse(delay_seconds=delay, reason=reason):
            left = request.deadline - clock()
            if delay >= left > 0:
                delay = left / 2  # one last attempt before the deadline is better than none
            word = QUOTA_EXHAUSTED if "quota" in reason else GATE_CLOSED
            return Retry(max(0.05, delay), word, counts_attempt=False)
        case Drop(status_code=status, reason=reason):
            message = f"a gate dropped the request ({status}): {reason}"
            return Answered(error_result(request.id, request.request_token, ErrorCode.GATE_DROPPED, message))


class Entrance(msgspec.Struct):
    """Waiting rooms and gates of one subscription: its own, then those of its pool.

    `is_replaced` is set by a reload: requests that are still entering start again at the new entrance.
    """

    rooms: Sequence[WaitingRoom]
    gates: Sequence[Gate]
    is_replaced: bool = False

    async def enter(self, request: Request, until_at: float) -> Go | Refuse | Drop:
        """Enter each waiting room in turn; the first verdict other than `Go` decides.

        Then nothing stays reserved.
        """
        held: list[Reservation] = []
        labels: dict[str, str] = {}
        is_in = False
        try:
            for room in self.rooms:
                if self.is_replaced:
                    return INTERRUPTED
                verdict = await room.enter(labelled(request, labels), until_at)
                if not isinstance(verdict, Go):
                    return verdict
                held.append(verdict.reservation)
                labels |= verdict.labels
            is_in = True
        finally:
            if not is_in:
                await Reservations(held).give_back()
        return Go(Reservations(held), labels)


class HeldForward:
    """Forwards requests that their gates admit; `entrances` by queue or subscription.

    A request waits at most `most_held_seconds`. `default` is the entrance for names that are not listed; None sends
    their requests at once. A reload changes it in place.
    """

    def __init__(
        self,
        forward: Forward,
        entrances: Mapping[str, Entrance],
        default: Entrance | None = None,
        clock: Callable[[], float] = time.time,
        *,
        most_held_seconds: float = math.inf,
    ) -> None:
        self._forward = forward
        self._entrances = entrances
        self._default = default
        self._clock = clock
        self._most_held_seconds = most_held_seconds

    def change(
        self, forward: Forward, entrances: Mapping[str, Entrance], default: Entrance | None = None
    ) -> None:
        """Use another `forward` and these entrances from now on; waiting requests enter again."""
        replaced = [*self._entrances.values(), *([self._default] if self._default else [])]
        self._forward, self._entrances, self._default = forward, entrances, default
        for entrance in replaced:
            entrance.is_replaced = True
        for room in {room for entrance in replaced for room in entrance.rooms}:
            room.interrupt()

    async def forward(self, request: Request, options: AttemptOptions) -> Outcome:
        """Wait for a gate, then send; or return a retry with its time."""
        if self._entrance(request) is None:
            return await self._forward(request, options)
        request = with_claim(request)
        arrived_at = self._clock()
        until_at = (
            request.deadline
            if options.seconds is None
            else min(request.deadline, arrived_at + options.seconds)
        )
        until_at = min(until_at, arrived_at + self._most_held_seconds)
        while (entrance := self._entrance(request)) is not None:
            verdict = await entrance.enter(request, until_at)
            if verdict is INTERRUPTED:
                continue
            match verdict:
                case Go():
                    send = partial(self._send, self._left(options, arrived_at))
                    return await send_admitted(request, entrance.gates, verdict, send)
                case Refuse() | Drop():
                    return self._in_time(request, refused(request, verdict), options)
        return await self._forward(request, self._left(options, arrived_at))

    def _entrance(self, request: Request) -> Entrance | None:
        return self._entrances.get(request.queue, self._default)

    async def _send(self, options: AttemptOptions, request: Request) -> Outcome:
        return await self._forward(request, options)

    def _left(self, options: AttemptOptions, arrived_at: float) -> AttemptOptions:
        """The seconds that remain of the delivery's time."""
        if options.seconds is None:
            return options
        return msgspec.structs.replace(
            options, seconds=max(0.0, options.seconds - (self._clock() - arrived_at))
        )

    def _in_time(self, request: Request, outcome: Outcome, options: AttemptOptions) -> Outcome:
        """Make a retry final if the transport could bring it only after the deadline."""
        if isinstance(outcome, Retry) and options.earliest_retry_seconds >= request.deadline - self._clock():
            return expired(request, None)
        return outcome
