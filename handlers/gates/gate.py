"""Gate interface: concurrency budget, admission of one request, feedback from responses.

    budget     budget(), shares(), room()        capacity that may be used now; synchronous, never raises
    admission  admit() -> Verdict, wait_open()   decision on one request, with its reservation
    feedback   observe()                         the gateway's response to an admitted request

`chain.py` describes when each is called. The base class is an open gate; subclasses override what they limit.
Instants are Unix seconds of the local clock, as in `Request.deadline`.

Labels give a request's priority: classification, tier, and their band. The poller's lanes and the windows of the `aimd`
gate follow the order of `BANDS`: band 0 goes first.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import ClassVar, Final, Protocol, TypeAlias

import msgspec

from handlers.contract.request import Request
from handlers.telemetry.dependencies import GateState

CLASSIFICATION: Final = "classification"
"""Label for whose capacity a request uses: `reserved` or `overflow`; quota gates set it."""
RESERVED: Final = "reserved"
OVERFLOW: Final = "overflow"
TIER: Final = "tier"
"""Label for the tier, unless a gate parameter names another label."""
INTERACTIVE: Final = "interactive"
TIERS: Final = (INTERACTIVE, "async", "batch")

BANDS: Final = tuple(f"{classification}-{tier}" for classification in (RESERVED, OVERFLOW) for tier in TIERS)
"""`reserved-interactive` to `overflow-batch`; the index is the band's number."""


def band_of(labels: Mapping[str, str], tier_label: str = TIER) -> int:
    """Number of a request's band.

    An unknown tier counts as `batch`, any classification but `reserved` as `overflow`.
    """
    tier = labels.get(tier_label, "")
    rank = TIERS.index(tier) if tier in TIERS else len(TIERS) - 1
    return rank if labels.get(CLASSIFICATION) == RESERVED else rank + len(TIERS)


def labelled(request: Request, labels: Mapping[str, str]) -> Request:
    """Copy of `request` with `labels` added. They replace labels of the same name."""
    if not labels:
        return request
    return msgspec.structs.replace(request, labels={**request.labels, **labels})


def without_labels(request: Request, names: Collection[str]) -> Request:
    """Copy of `request` without the labels of these names."""
    if request.labels.keys().isdisjoint(names):
        return request
    kept = {name: value for name, value in request.labels.items() if name not in names}
    return msgspec.structs.replace(request, labels=kept)


NO_LABELS: Final[Mapping[str, str]] = {}


class Reservation(Protocol):
    """What a gate reserved for an admitted request.

    The caller calls either `release` or `give_back`, exactly once.
    """

    async def release(self) -> None:
        """End the reservation of a request that was sent. Slots are freed, rate units stay used."""
        ...

    async def give_back(self) -> None:
        """Undo the reservation of a request that was not sent. Rate units are returned."""
        ...


class NoReservation:
    """Reservation of a gate that reserves nothing."""

    async def release(self) -> None: ...

    async def give_back(self) -> None: ...


NOTHING_RESERVED: Final = NoReservation()


class CountedSlot:
    """A slot that a gate counts in this process: `leave` frees it. Releasing it twice is a no-op."""

    def __init__(self, leave: Callable[[], None]) -> None:
        self._leave: Callable[[], None] | None = leave

    async def release(self) -> None:
        self.leave_once()

    async def give_back(self) -> None:
        self.leave_once()

    def leave_once(self) -> bool:
        """Free the slot; False if it is free already."""
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()
        return leave is not None


class Go(msgspec.Struct, frozen=True):
    """Verdict: send now. `labels` are added to the request's own for later gates and lanes."""

    reservation: Reservation = NOTHING_RESERVED
    labels: Mapping[str, str] = msgspec.field(default_factory=dict)


WaitOpen: TypeAlias = Callable[[float], Awaitable[bool]]
"""Waits until the gate may have room (True) or until the given Unix second (False)."""


class Hold(msgspec.Struct, frozen=True):
    """Verdict: keep the request, `await wait_open(until_at)`, then ask again or give up."""

    reason: str
    wait_open: WaitOpen


class Refuse(msgspec.Struct, frozen=True):
    """Verdict: return the request to its queue for at least `delay_seconds`."""

    delay_seconds: float
    reason: str


class Drop(msgspec.Struct, frozen=True):
    """Verdict: never send. The final result is `GATE_DROPPED` and names this status."""

    status_code: int
    reason: str


Verdict: TypeAlias = Go | Hold | Refuse | Drop


class Feedback(msgspec.Struct, frozen=True):
    """The gateway's response to an admitted request.

    `status_code` is None without a complete response (no connection, timeout, broken body).
    """

    status_code: int | None
    dropped_reason: str = ""
    retry_after_seconds: float | None = None
    queue_duration_ms: float | None = None
    band_headroom: float | None = None


class Share(msgspec.Struct, frozen=True):
    """Limit on the slots of a pool that may be in use.

    `part` is the allowed fraction of the slots, 0 to 1. `headroom` (-1 to 1, also a fraction of the slots) is added to
    the slots in use when the metric was read, at `at` (Unix seconds). The larger of the two limits holds. The metric
    may be `lag_seconds` older than `at`. `fewer` slots are subtracted, for requests that the gateway has rejected
    since.
    """

    part: float
    headroom: float | None = None
    at: float = 0.0
    lag_seconds: float = 15.0
    fewer: int = 0


class Gate:
    """Open gate and base class of all gates."""

    gate_type: ClassVar[str]

    async def start(self) -> None:
        """Read the source once and log the gate's limits. Does not raise if the source is missing."""

    async def aclose(self) -> None:
        """Stop background work. Reservations of requests in flight stay valid."""

    async def renewed(self, new: Gate, discarded: list[Gate]) -> Gate:
        """Replace this gate with `new` at a reload. Returns the gate to use.

        The result is this gate with new options, or `new`, which is then started. State that a limit depends on is
        kept. Gates no longer in use are added to `discarded`; the caller closes them when the requests that they
        admitted have ended.
        """
        await new.start()
        discarded.append(self)
        return new

    def budget(self) -> float:
        """Published budget, 0 (closed) to 1."""
        return 1.0

    def shares(self) -> tuple[Share, ...]:
        """Limits on the pool's slots. The smallest holds."""
        return (Share(self.budget()),)

    def shares_pool(self) -> bool:
        """Whether all processes read the same budget and so share the slots."""
        return False

    def room(self, labels: Mapping[str, str] = NO_LABELS) -> int | None:  # noqa: ARG002 - a budget is for all
        """Estimated number of requests with `labels` that can still be admitted.

        None if unlimited. The poller claims at most this many, because `admit` would refuse the rest.
        """
        return None if self.budget() > 0 else 0

    async def admit(self, request: Request) -> Verdict:  # noqa: ARG002 - a budget is for all alike
        """Decide whether a request may be sent now. `Go` reserves what it needs."""
        if self.budget() > 0:
            return Go()
        return Refuse(CLOSED_RETRY_SECONDS, "closed")

    async def wait_open(self, until_at: float) -> bool:
        """Wait until the gate has room. False if it has none by `until_at` (Unix seconds)."""
        while self.room() == 0:
            left = until_at - time.time()
            if left <= 0:
                return False
            await asyncio.sleep(min(left, POLL_SECONDS))
        return True

    def observe(self, request: Request, feedback: Feedback) -> None:
        """Learn from the response to an admitted request, before its release."""

    def state(self) -> GateState:
        """Snapshot of the gate, without I/O."""
        return GateState(self.gate_type, budget=self.budget())


CLOSED_RETRY_SECONDS: Final = 5.0
"""Delay of a request that a closed budget refused. By its end, the metric has been read again."""

POLL_SECONDS: Final = 0.25
"""Interval at which waiting requests check a budget that is read in the background."""


async def check_reservations(gate: Gate, *, most: int = 100) -> None:
    """Raise `AssertionError` unless every reservation of a new gate can be undone.

    Starts the gate, fills it with at most `most` requests, and gives back all. It must admit as many again. Then all
    are released, and the gate is closed.
    """
    await gate.start()
    try:
        at_first = await _admitted(gate, most)
        if not at_first:
            raise AssertionError(f"{gate.gate_type}: expected a Go for the first request, got none")
        for reservation in at_first:
            await reservation.give_back()
        again = await _admitted(gate, most)
        if len(again) != len(at_first):
            raise AssertionError(
                f"{gate.gate_type}: expected as many admitted requests after give_back as before ({len(at_first)}), "
                f"got {len(again)}"
            )
        for reservation in again:
            await reservation.release()
        gate.state()
    finally:
        await gate.aclose()


async def _admitted(gate: Gate, most: int) -> list[Reservation]:
    """The reservations of new requests, until the gate admits no more."""
    found: list[Reservation] = []
    while len(found) < most:
        claim = secrets.token_hex(16)
        verdict = await gate.admit(Request(id=claim, deadline=time.time() + 600, payload=b"{}", claim=claim))
        if not isinstance(verdict, Go):
            break
        found.append(verdict.reservation)
    return found
