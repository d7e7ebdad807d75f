"""What a gate is: a budget for a pool, a verdict for one request, and an ear for the gateway's answers.

A gate overrides what it has an opinion on; everything left alone is an open gate. Three sides:

    budget     budget(), shares(), room()      how much may be used now; synchronous, from what is known
    admission  admit() -> Verdict, wait_open() one request, with whatever it reserves
    feedback   observe()                       what the gateway answered to a request it admitted

All instants are Unix seconds of this machine, as in `Request.deadline`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final, Protocol, TypeAlias

from handlers.contract.request import Request

NO_LABELS: Final[Mapping[str, str]] = {}


class Reservation(Protocol):
    """What an admitted request holds of a gate. Exactly one of the two is called, once, on every way out."""

    async def release(self) -> None:
        """The request was sent, and is over: give back what is held, keep what was paid for."""
        ...

    async def give_back(self) -> None:
        """The request was not sent after all: undo everything, also what was paid for."""
        ...


class NoReservation:
    """For a gate that holds nothing for a request."""

    async def release(self) -> None:
        """Nothing is held."""

    async def give_back(self) -> None:
        """Nothing was paid."""


NOTHING_RESERVED: Final = NoReservation()


@dataclass(frozen=True, slots=True)
class Go:
    """Send it now. `labels` are the gate's additions to the request's own, for later gates and lanes."""

    reservation: Reservation = NOTHING_RESERVED
    labels: Mapping[str, str] = field(default_factory=dict)


WaitOpen: TypeAlias = Callable[[float], Awaitable[bool]]
"""Waits until asking again makes sense: True; or until that instant (Unix seconds): False."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Not now: wait with it where it is, `await wait_open(until_at)`, then ask again or give up."""

    reason: str
    wait_open: WaitOpen


@dataclass(frozen=True, slots=True)
class Refuse:
    """Not now: back to the queue. `delay_seconds` is the soonest that asking again makes sense."""

    delay_seconds: float
    reason: str


@dataclass(frozen=True, slots=True)
class Drop:
    """Never: the final result is `GATE_DROPPED`, with this status."""

    status_code: int
    reason: str


Verdict: TypeAlias = Go | Hold | Refuse | Drop


@dataclass(frozen=True, slots=True)
class Answer:
    """How an admitted request went, as far as a gate wants to know.

    `status_code` is None when no answer came (no connection, a timeout, a broken body).
    """

    status_code: int | None
    dropped_reason: str = ""
    retry_after_seconds: float | None = None
    queue_duration_ms: float | None = None
    band_headroom: float | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """How much of a pool's slots may be in use.

    `part` is 0 to 1; 1 is the whole pool, so a gate that publishes "threshold - value" says here what
    part of its threshold that is. With `headroom` (-1 to 1, a part of the slots as well) so much may come on
    top of what was in use when the reading was taken (`at`, Unix seconds), or must come off it, if that
    leaves more than `part`. What the reading shows may be `lag_seconds` older than `at`.
    `fewer` slots are gone since the reading: the gateway turned so many of ours away for want of room.
    """

    part: float
    headroom: float | None = None
    at: float = 0.0
    lag_seconds: float = 15.0
    fewer: int = 0


@dataclass(frozen=True, slots=True)
class GateState:
    """A gate at one moment, for metrics, logs and the status page.

    `value` and `threshold` are the reading and where the gate closes (None for a gate without a metric).
    `on_missing` names the rule in force while the source is missing, else it is empty. `why_closed` is empty
    while requests may go. `figures` are the gate's own gauges, by name.
    """

    gate_type: str
    budget: float = 1.0
    value: float | None = None
    threshold: float | None = None
    is_source_available: bool = True
    on_missing: str = ""
    why_closed: str = ""
    label: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    inner: tuple[GateState, ...] = ()


class Gate:
    """An open gate; every kind of gate overrides what it has an opinion on."""

    gate_type: ClassVar[str]

    async def start(self) -> None:
        """Probe the source and log what the gate resolved to. A source that is down stops no start."""

    async def aclose(self) -> None:
        """Stop background work; give back nothing: requests in flight still hold their reservations."""

    def take_over(self, before: Gate) -> None:
        """Go on from what `before` knows: it stood in this one's place until the settings changed.

        What it let go is still in flight, and tells `before` when it is over. By default nothing is kept of it.
        """

    def budget(self) -> float:
        """The published budget, 0 (closed) to 1."""
        return 1.0

    def shares(self) -> tuple[Share, ...]:
        """What the budget lets a pool use; the pool obeys the least of them."""
        return (Share(self.budget()),)

    def shares_pool(self) -> bool:
        """Whether the budget is of a pool that all processes use together: then they share its slots."""
        return False

    def room(self, labels: Mapping[str, str] = NO_LABELS) -> int | None:  # noqa: ARG002 - a budget is for all
        """How many more requests with these labels `admit` would let go now, as far as is known here.

        None is no limit of this gate's own. Claim no more than this: the rest would only be refused.
        """
        return None if self.budget() > 0 else 0

    async def admit(self, request: Request) -> Verdict:  # noqa: ARG002 - a budget is for all alike
        """Decide on one request that is about to be sent, and reserve what it needs."""
        if self.budget() > 0:
            return Go()
        return Refuse(CLOSED_RETRY_SECONDS, "closed")

    async def wait_open(self, until_at: float) -> bool:
        """Wait until there is room: True; or until `until_at`, Unix seconds: False."""
        while self.room() == 0:
            left = until_at - time.time()
            if left <= 0:
                return False
            await asyncio.sleep(min(left, LOOK_AGAIN_SECONDS))
        return True

    def observe(self, request: Request, answer: Answer) -> None:
        """Learn from the answer to a request that this gate let go; called before its release."""

    def state(self) -> GateState:
        """A snapshot of the gate; cheap."""
        budget = self.budget()
        return GateState(self.gate_type, budget=budget, why_closed="" if budget > 0 else "closed")


CLOSED_RETRY_SECONDS: Final = 5.0
"""When a request that met a closed budget may ask again: by then there is a new reading."""

LOOK_AGAIN_SECONDS: Final = 0.25
"""How often a waiting gate looks at a budget that is read in the background anyway."""
