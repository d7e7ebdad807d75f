"""Admission of pushed deliveries: a closed gate holds them, within their time.

Holding costs one coroutine; a nack would use up a delivery attempt and slow the whole subscription down.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec

from handlers.contract.request import Request
from handlers.forward.forward import AttemptOptions, Forward, expired
from handlers.forward.middleware.gated import refused, send_admitted
from handlers.forward.outcome import Outcome, Retry
from handlers.gates.chain import Reservations, with_claim
from handlers.gates.gate import Drop, Gate, Go, Refuse, Reservation
from handlers.gates.labels import labelled
from handlers.gates.waiting_room import WaitingRoom


@dataclass(frozen=True, slots=True)
class Entrance:
    """The waiting rooms of one subscription, its own and its pool's, and the gates of both."""

    keepers: Sequence[WaitingRoom]
    gates: Sequence[Gate]

    async def enter(self, request: Request, until_at: float) -> Go | Refuse | Drop:
        """Enter each room in turn; the first that does not admit decides, and all reservations are undone."""
        held: list[Reservation] = []
        labels: dict[str, str] = {}
        is_in = False
        try:
            for keeper in self.keepers:
                verdict = await keeper.enter(labelled(request, labels), until_at)
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
    """Forwards admitted requests; `entrances` are by queue or subscription, `default` is for all others.

    A request is held for at most `most_held_seconds`.
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
        self._elsewhere: Forward | None = None

    def move_to(self, elsewhere: Forward) -> None:
        """Pass waiting requests to `elsewhere` and hold no more; requests in flight end here."""
        self._elsewhere = elsewhere
        entrances = [*self._entrances.values(), *([self._default] if self._default else [])]
        for keeper in {keeper for entrance in entrances for keeper in entrance.keepers}:
            keeper.retire()

    async def forward(self, request: Request, options: AttemptOptions) -> Outcome:
        """Hold until the gates admit, then send; or the retry if they refuse."""
        entrance = self._entrances.get(request.queue, self._default)
        if entrance is None:
            return await self._forward(request, options)
        request = with_claim(request)
        arrived_at = self._clock()
        until_at = (
            request.deadline
            if options.seconds is None
            else min(request.deadline, arrived_at + options.seconds)
        )
        until_at = min(until_at, arrived_at + self._most_held_seconds)
        verdict = await entrance.enter(request, until_at)
        match verdict:
            case Go():
                left = self._left(options, arrived_at)
                return await send_admitted(request, entrance.gates, verdict, partial(self._send, left))
            case Refuse() if self._elsewhere is not None:
                return await self._elsewhere(request, self._left(options, arrived_at))
            case Refuse() | Drop():
                return self._in_time(request, refused(request, verdict), options)

    async def _send(self, options: AttemptOptions, request: Request) -> Outcome:
        return await self._forward(request, options)

    def _left(self, options: AttemptOptions, arrived_at: float) -> AttemptOptions:
        """The options with the time that the wait has left."""
        if options.seconds is None:
            return options
        return msgspec.structs.replace(
            options, seconds=max(0.0, options.seconds - (self._clock() - arrived_at))
        )

    def _in_time(self, request: Request, outcome: Outcome, options: AttemptOptions) -> Outcome:
        """Make a retry final if the delivery could only return after the deadline."""
        if isinstance(outcome, Retry) and options.earliest_retry_seconds >= request.deadline - self._clock():
            return expired(request, None)
        return outcome
