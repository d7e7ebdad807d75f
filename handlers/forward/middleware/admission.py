"""Admission layer: send a request once its gates admit it.

Afterwards the gates get the response as feedback, and their reservations are released. Verdicts become outcomes here,
for the poller and for the doors.
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
from handlers.contract.result import ErrorCode
from handlers.forward.forward import AttemptOptions, Forward, expired, failed
from handlers.forward.outcome import Answered, Outcome, Retry
from handlers.gates.chain import Reservations, admit_all, with_claim
from handlers.gates.gate import Drop, Gate, Go, Hold, Refuse, Reservation, labelled
from handlers.gates.waiting_room import INTERRUPTED, WaitingRoom

Send = Callable[[Request], Awaitable[Outcome]]
"""Makes one attempt for an admitted request."""

GATE_CLOSED: Final = "gate_closed"
QUOTA_EXHAUSTED: Final = "quota_exhausted"


def admitted(forward: Forward, gates: Sequence[Gate], clock: Callable[[], float] = time.time) -> Forward:
    """The admission layer of a poller: requests wait until their deadline."""

    async def send(request: Request, options: AttemptOptions) -> Outcome:
        if options.on_sending is not None:
            options.on_sending()
        return await forward(request, options)

    async def admit(request: Request, options: AttemptOptions) -> Outcome:
        return await gated(request, gates, partial(send, options=options), clock)

    return admit if gates else send


async def gated(request: Request, gates: Sequence[Gate], send: Send, clock: Callable[[], float] = time.time) -> Outcome:
    """Send the request once the gates admit it, before its deadline.

    A refusal becomes a retry that does not count as an attempt, a drop a final `GATE_DROPPED`. The deadline is in
    Unix seconds of `clock`; gates wait by the local clock, so it is converted.
    """
    request = with_claim(request)
    while True:
        verdict = await admit_all(gates, request)
        if isinstance(verdict, Hold):
            end_if_cancelled()  # a gate may have swallowed the cancellation; then the request would wait here
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
        # A request that is cancelled during the call counts as sent: it may have reached the gateway.
        await (go.reservation.release() if was_sent else go.reservation.give_back())
    return outcome


def refused(request: Request, verdict: Refuse | Drop, clock: Callable[[], float] = time.time) -> Outcome:
    """The outcome of a request that a gate refused or dropped."""
    match verdict:
        case Refuse(delay_seconds=delay, reason=reason):
            left = request.deadline - clock()
            if delay >= left > 0:
                delay = left / 2  # make one last attempt before the deadline
            word = QUOTA_EXHAUSTED if "quota" in reason else GATE_CLOSED
            return Retry(max(0.05, delay), word, counts_attempt=False)
        case Drop(status_code=status, reason=reason):
            message = f"a gate dropped the request ({status}): {reason}"
            return failed(request, ErrorCode.GATE_DROPPED, message)


class Entrance(msgspec.Struct):
    """Waiting rooms and gates of one subscription, then those of its pool.

    A reload sets `is_replaced`; requests that are still entering start again at the new entrance.
    """

    rooms: Sequence[WaitingRoom]
    gates: Sequence[Gate]
    is_replaced: bool = False

    async def enter(self, request: Request, until_at: float) -> Go | Refuse | Drop:
        """Enter each waiting room in turn.

        The first verdict other than `Go` decides, and all reservations are returned. `until_at` is in Unix seconds.
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
    """Forwards requests that their gates admit.

    `entrances` are by queue or subscription; all other requests are sent at once. A request waits at most
    `most_held_seconds`.
    """

    def __init__(
        self,
        forward: Forward,
        entrances: Mapping[str, Entrance],
        clock: Callable[[], float] = time.time,
        *,
        most_held_seconds: float = math.inf,
    ) -> None:
        self._forward = forward
        self._entrances = entrances
        self._default: Entrance | None = None
        self._clock = clock
        self._most_held_seconds = most_held_seconds

    def change(self, forward: Forward, entrances: Mapping[str, Entrance], default: Entrance | None = None) -> None:
        """Replace `forward` and the entrances (reload). Waiting requests enter again.

        `default` is for all queues and subscriptions without an entrance of their own.
        """
        replaced = [*self._entrances.values(), *([self._default] if self._default else [])]
        self._forward, self._entrances, self._default = forward, entrances, default
        for entrance in replaced:
            entrance.is_replaced = True
        for room in {room for entrance in replaced for room in entrance.rooms}:
            room.interrupt()

    async def forward(self, request: Request, options: AttemptOptions) -> Outcome:
        """Wait for the gates, then send the request or return a retry."""
        if self._entrance(request) is None:
            return await self._forward(request, options)
        request = with_claim(request)
        now, arrived_at = self._clock(), time.monotonic()
        until_at = request.deadline if options.seconds is None else min(request.deadline, now + options.seconds)
        until_at = min(until_at, now + self._most_held_seconds)
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
        """The options with the rest of the delivery's time."""
        if options.seconds is None:
            return options
        return msgspec.structs.replace(options, seconds=max(0.0, options.seconds - (time.monotonic() - arrived_at)))

    def _in_time(self, request: Request, outcome: Outcome, options: AttemptOptions) -> Outcome:
        """The outcome; expired if the redelivery would come after the deadline."""
        if isinstance(outcome, Retry) and options.earliest_retry_seconds >= request.deadline - self._clock():
            return expired(request, None)
        return outcome
