"""A door, and the only place where the way of a request is walked: decode, forward, settle."""

from __future__ import annotations

from typing import Protocol, TypeVar

from handlers.contract.request import Request
from handlers.doors.http_message import Answer, Delivery
from handlers.forward.forward import AttemptOptions, Forward
from handlers.forward.outcome import Answered, Outcome

ContextT = TypeVar("ContextT")


class Door(Protocol[ContextT]):
    """One kind of delivery. `ContextT` is what the door needs again when it settles."""

    async def decode(self, delivery: Delivery) -> tuple[Request | Answered, ContextT] | Answer:
        """The request; or its final outcome, where there is nothing to send; or the answer at once."""
        ...

    def limits(self, context: ContextT) -> AttemptOptions:
        """What this delivery allows the attempt."""
        ...

    async def settle(self, context: ContextT, outcome: Outcome) -> Answer:
        """Say the outcome back in the caller's own words."""
        ...


async def handle(door: Door[ContextT], delivery: Delivery, forward: Forward) -> Answer:
    """Walk one delivery through. Never raises for bad input: that is a final result, or a plain 4xx."""
    decoded = await door.decode(delivery)
    if isinstance(decoded, Answer):
        return decoded
    request, context = decoded
    outcome = request if isinstance(request, Answered) else await forward(request, door.limits(context))
    return await door.settle(context, outcome)
