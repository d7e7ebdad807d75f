"""`aimd`: a window of requests in flight for each band, moved by the gateway's own answers.

Needs no metrics and knows no capacity: it finds out, and gives way with the first rejection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from handlers.contract.request import Request
from handlers.gates.aimd.window import Band, WindowOptions, Windows
from handlers.gates.chain import claim_name
from handlers.gates.gate import NO_LABELS, Answer, Gate, GateState, Go, Hold, Refuse, Verdict, WaitOpen
from handlers.gates.labels import BANDS, CLASSIFICATION, OVERFLOW, TIER, band_of
from handlers.gates.parameters import Senseless, number, parameter, seconds, text
from handlers.gates.quota.local_concurrency import Waiters
from handlers.gates.sources import GateSources

_FULL_RETRY_SECONDS: Final = 1.0
_LONGEST_CLOSE_SECONDS: Final = 300.0  # a gateway's Retry-After of a day must not switch the pool off


@dataclass(frozen=True, slots=True, kw_only=True)
class AimdParameters:
    """`queue_duration_target` 0 switches that signal off; `pool` is a label for metrics."""

    min_window: float = parameter(
        number(least=1, most=100_000), default=1.0, means="Smallest number of requests in flight."
    )
    max_window: float = parameter(
        number(least=1, most=100_000), default=256.0, means="Largest number of requests in flight."
    )
    increase: float = parameter(
        number(above=0, most=1_000),
        default=1.0,
        means=(
            "Slots added to the window for each answer in slow start, after that for each full "
            "window of answers."
        ),
    )
    decrease_factor: float = parameter(
        number(above=0, below=1),
        default=0.5,
        means="Factor applied to the window when the gateway refuses, between 0 and 1.",
    )
    hold_duration: float = parameter(
        seconds(above=-1e-9, most=3_600), default=1.0, means="Seconds without a further decrease after one."
    )
    tier_label: str = parameter(text(), default=TIER, means="Label that holds a request's tier.")
    queue_duration_target: float = parameter(
        seconds(above=-1e-9, most=3_600),
        default=0.0,
        means="Seconds in the gateway's queue from which the window shrinks too; 0: not considered.",
    )
    pool: str = parameter(text(may_be_empty=True), default="", means="Inference pool, for logs and metrics.")

    def __post_init__(self) -> None:
        if self.max_window < self.min_window:
            raise Senseless(
                "max_window",
                found=f"{self.max_window:g}",
                accepted=f"at least min_window, {self.min_window:g}",
            )


@dataclass(frozen=True, slots=True)
class _Flight:
    band: int
    sent_at: float


class AimdGate(Gate):
    """Counts what is in flight against the band's window, and learns from what comes back."""

    gate_type = "aimd"

    def __init__(self, parameters: AimdParameters, sources: GateSources) -> None:
        self._parameters = parameters
        self._windows = Windows(
            WindowOptions(
                min_window=parameters.min_window,
                max_window=parameters.max_window,
                increase=parameters.increase,
                decrease_factor=parameters.decrease_factor,
                hold_seconds=parameters.hold_duration,
                queue_target_seconds=parameters.queue_duration_target,
            )
        )
        self._clock = sources.clock
        self._draw = sources.draw
        self._log = sources.log
        self._flights: dict[str, _Flight] = {}
        self._waiters = [Waiters(sources.clock) for _ in BANDS]

    async def start(self) -> None:
        """Log the bounds of the window."""
        self._log.info(
            "gate learns from answers",
            gate=self.gate_type,
            pool=self._parameters.pool,
            min_window=self._parameters.min_window,
            max_window=self._parameters.max_window,
        )

    def take_over(self, before: Gate) -> None:
        """Keep the windows, if they have the same bounds: what was learnt is still true."""
        if isinstance(before, AimdGate) and before._parameters == self._parameters:
            self._windows, self._flights = before._windows, before._flights
            self._waiters = before._waiters

    def budget(self) -> float:
        """The widest open part of a window: something of that band may go."""
        now = self._clock()
        return max(
            self._windows.room(number, now) / max(1.0, band.window)
            for number, band in enumerate(self._windows.bands)
        )

    def room(self, labels: Mapping[str, str] = NO_LABELS) -> int:
        """What is left of the window; of the widest, where no label says the band."""
        now = self._clock()
        if CLASSIFICATION in labels or self._parameters.tier_label in labels:
            return self._windows.room(band_of(labels, self._parameters.tier_label), now)
        lowest = len(BANDS) - 1
        used = [number for number, band in enumerate(self._windows.bands) if band.in_flight] or [lowest]
        return max(self._windows.room(number, now) for number in {*used, lowest})

    async def admit(self, request: Request) -> Verdict:
        """Go while the band's window has room; else reserved waits and overflow is refused."""
        now = self._clock()
        band = band_of(request.labels, self._parameters.tier_label)
        if self._windows.room(band, now) > 0:
            self._windows.bands[band].in_flight += 1
            key = claim_name(request)
            flight = self._flights[key] = _Flight(band, now)
            return Go(_InFlight(self, key, flight))
        closed_seconds = max(0.0, self._windows.bands[band].closed_until - now)
        reason = _why_closed(self._windows.bands[band], now)
        if band < BANDS.index(f"{OVERFLOW}-interactive"):
            return Hold(reason, self._wait_for(band))
        return Refuse(closed_seconds + _FULL_RETRY_SECONDS * (0.5 + self._draw()), reason)

    async def wait_open(self, until_at: float) -> bool:
        """Wait for room in the lowest band, the one of requests without labels."""
        return await self._wait_for(len(BANDS) - 1)(until_at)

    def observe(self, request: Request, answer: Answer) -> None:
        """Move the window of the band that the request was let go in."""
        flight = self._flights.get(claim_name(request))
        if flight is None:
            return
        now = self._clock()
        if answer.band_headroom is not None:
            self._windows.cap(flight.band, max(0.0, answer.band_headroom))
        sign = sign_of(answer)
        if sign is Sign.ACCEPTED:
            queued = None if answer.queue_duration_ms is None else answer.queue_duration_ms / 1000
            self._windows.accepted(flight.band, flight.sent_at, now, queued)
        elif sign is Sign.NO_CAPACITY:
            wish = answer.retry_after_seconds
            wish = None if wish is None else min(wish, _LONGEST_CLOSE_SECONDS)
            self._windows.rejected(flight.band, flight.sent_at, now, wish)
        elif sign is Sign.EXPIRED:
            self._windows.expired(flight.band, flight.sent_at, now)
        self._wake()

    def leave(self, key: str, flight: _Flight) -> None:
        """One request is over."""
        self._windows.bands[flight.band].in_flight -= 1
        if self._flights.get(key) is flight:
            del self._flights[key]
        self._wake()

    def state(self) -> GateState:
        """The window of each band that has been used, below."""
        now = self._clock()
        bands = tuple(
            self._band_state(number, band, now)
            for number, band in enumerate(self._windows.bands)
            if band.in_flight or band.shrunk_at or band.window != self._parameters.min_window
        )
        budget = self.budget()
        return GateState(
            self.gate_type,
            budget=budget,
            why_closed="" if budget > 0 else "all windows are full or closed",
            label=self._parameters.pool,
            inner=bands,
        )

    def _band_state(self, number: int, band: Band, now: float) -> GateState:
        room = self._windows.room(number, now)
        return GateState(
            self.gate_type,
            budget=room / max(1.0, band.window),
            value=band.in_flight,
            threshold=band.window,
            why_closed=_why_closed(band, now) if room == 0 else "",
            label=BANDS[number],
            figures={
                "aimd_window": band.window,
                "aimd_ssthresh": band.threshold,
                "aimd_inflight": band.in_flight,
            },
        )

    def _wait_for(self, band: int) -> WaitOpen:
        async def wait_open(until_at: float) -> bool:
            while self._windows.room(band, self._clock()) == 0:
                now = self._clock()
                if now >= until_at:
                    return False
                reopens_at = self._windows.bands[band].closed_until
                await self._waiters[band].wait(min(until_at, reopens_at) if reopens_at > now else until_at)
            return True

        return wait_open

    def _wake(self) -> None:
        now = self._clock()
        for band, waiters in enumerate(self._waiters):
            waiters.wake(self._windows.room(band, now))


def _why_closed(band: Band, now: float) -> str:
    return "closed by Retry-After" if band.closed_until > now else "window full"


class Sign(Enum):
    """What an answer says about the gateway's capacity."""

    ACCEPTED = "accepted"
    NO_CAPACITY = "no capacity"
    EXPIRED = "expired in the gateway's queue"
    NOTHING = "nothing"


def sign_of(answer: Answer) -> Sign:
    """The gateway's own reason where it gave one; else a bare 429 is a rejection, and an error says nothing.

    An eviction says nothing either: the request was admitted, and made room for a more urgent one.
    """
    if answer.dropped_reason == "rejected-saturated":
        return Sign.NO_CAPACITY
    if answer.dropped_reason == "rejected-ttl-expired":
        return Sign.EXPIRED
    if answer.dropped_reason or answer.status_code is None:
        return Sign.NOTHING
    if answer.status_code == 429:
        return Sign.NO_CAPACITY
    return Sign.ACCEPTED if 200 <= answer.status_code < 300 else Sign.NOTHING


class _InFlight:
    """One request's place in its band's window; given back once."""

    def __init__(self, gate: AimdGate, key: str, flight: _Flight) -> None:
        self._gate: AimdGate | None = gate
        self._key = key
        self._flight = flight

    async def release(self) -> None:
        """Give it back."""
        if self._gate is not None:
            gate, self._gate = self._gate, None
            gate.leave(self._key, self._flight)

    async def give_back(self) -> None:
        """Give it back."""
        await self.release()
