"""`aimd`: one congestion window per band, adjusted by the gateway's responses.

AIMD is additive increase, multiplicative decrease, as in TCP. The gate needs no metrics: windows grow until the gateway
rejects a request, and shrink at the first rejection. A band is a priority class (`gate.py`).

The gateway serves bands in order, so the lowest band is congested first. Therefore a rejection shrinks the windows of
its band and of lower bands, and stops the growth of higher bands for a while. A success in a band shows that higher
bands have room too, so they may grow again. Responses arrive out of order, so after a decrease only responses to
requests that were sent later change the window.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from enum import Enum
from functools import partial
from typing import Annotated, Final

import msgspec

from handlers.backoff import jittered
from handlers.contract.accepted import about
from handlers.contract.request import Request
from handlers.gates.chain import claim_name
from handlers.gates.gate import (
    BANDS,
    CLASSIFICATION,
    NO_LABELS,
    OVERFLOW,
    TIER,
    CountedSlot,
    Feedback,
    Gate,
    Go,
    Hold,
    Refuse,
    Verdict,
    WaitOpen,
    band_of,
)
from handlers.gates.parameters import DURATION, InconsistentParameters, Text
from handlers.gates.quota.local_concurrency import Waiters
from handlers.gates.sources import GateSources
from handlers.telemetry.dependencies import GateState

GENTLE: Final = 0.9
"""Decrease factor for early signs of congestion: expiry in the gateway's queue, or long queueing."""


_FULL_RETRY_SECONDS: Final = 1.0
_LONGEST_CLOSE_SECONDS: Final = 300.0  # a Retry-After of a day must not close the pool for a day


class AimdParameters(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds and steps of the congestion windows."""

    min_window: Annotated[
        float, about("Lowest value of the window, the limit on requests in flight.", ge=1, le=100000)
    ] = 1.0
    max_window: Annotated[float, about("Highest value of the window.", ge=1, le=100000)] = 256.0
    increase: Annotated[
        float,
        about(
            "Slots added to the window: in slow start for each success, after that for each full window of successes.",
            gt=0,
            le=1000,
        ),
    ] = 1.0
    decrease_factor: Annotated[
        float, about("Factor applied to the window when the gateway rejects, between 0 and 1.", gt=0, lt=1)
    ] = 0.5
    hold_duration: Annotated[
        float,
        DURATION,
        about(
            "After a rejection, the windows of requests of higher priority do not grow for this many seconds. "
            "They may grow earlier if a request of lower priority succeeds.",
            ge=0,
            le=3600,
        ),
    ] = 1.0
    tier_label: Annotated[Text, about("Label that holds a request's tier.")] = TIER
    queue_duration_target: Annotated[
        float,
        DURATION,
        about(
            "If a request waited this many seconds in the gateway's queue, the window stops growing; at "
            "twice this time it shrinks. 0: disabled.",
            ge=0,
            le=3600,
        ),
    ] = 0.0
    pool: Annotated[str, about("Inference pool, for logs and metrics.")] = ""

    def __post_init__(self) -> None:
        if self.max_window < self.min_window:
            raise InconsistentParameters(
                "max_window",
                found=f"{self.max_window:g}",
                accepted=f"at least min_window, {self.min_window:g}",
            )


class Band(msgspec.Struct):
    """Window of one band. Instants are seconds of one clock; 0 means never."""

    window: float
    threshold: float
    """Slow-start threshold: the window after the last decrease. Below it, the window grows faster (slow start)."""
    in_flight: int = 0
    shrunk_at: float = 0.0
    closed_until: float = 0.0
    held_until: float = 0.0
    held_since: float = 0.0


class Windows:
    """Windows of all bands, by number (`handlers.gates.gate.BANDS`). Callers pass the time."""

    def __init__(self, options: AimdParameters) -> None:
        self._options = options
        self.bands = [Band(options.min_window, options.max_window) for _ in BANDS]

    def room(self, band: int, now: float) -> int:
        """Number of further requests that the band may have in flight."""
        found = self.bands[band]
        if now < found.closed_until:
            return 0
        return max(0, int(found.window) - found.in_flight)

    def accepted(self, band: int, sent_at: float, now: float, queue_seconds: float | None) -> None:
        """Grow the window after a success.

        The window does not grow if the request waited long in the gateway, or if the window shrank since it was sent.
        """
        for above in self.bands[:band]:
            if sent_at > above.held_since:
                above.held_until = 0.0
        found = self.bands[band]
        target = self._options.queue_duration_target
        if target > 0 and queue_seconds is not None and queue_seconds >= target:
            if queue_seconds >= 2 * target:
                self._shrink(found, GENTLE, sent_at, now)
            return
        if now < found.held_until or sent_at <= found.shrunk_at:
            return
        step = self._options.increase
        if found.window >= found.threshold:
            step /= found.window
        found.window = min(self._options.max_window, found.window + step)

    def rejected(self, band: int, sent_at: float, now: float, retry_after_seconds: float | None) -> None:
        """Shrink this and lower bands' windows, at most once per round trip.

        Windows of higher bands stop growing for a while. A `Retry-After` closes this and lower bands for that time.
        """
        found = self.bands[band]
        is_new = sent_at > found.shrunk_at
        self._shrink(found, self._options.decrease_factor, sent_at, now)
        if retry_after_seconds:
            self._close(found, now + retry_after_seconds)
        if not is_new:
            return
        for below in self.bands[band + 1 :]:
            self._shrink(below, self._options.decrease_factor, sent_at, now)
            if found.closed_until > now:
                self._close(below, found.closed_until)
        self._hold_above(band, now)

    def expired(self, band: int, sent_at: float, now: float) -> None:
        """Shrink the window gently: the request expired in the gateway's queue."""
        found = self.bands[band]
        is_new = sent_at > found.shrunk_at
        self._shrink(found, GENTLE, sent_at, now)
        if is_new:
            self._hold_above(band, now)

    def cap(self, band: int, headroom: float) -> None:
        """Cap the window at requests in flight plus the gateway's reported headroom."""
        found = self.bands[band]
        most = max(self._options.min_window, found.in_flight + headroom)
        if found.window > most:
            found.window = most
            found.threshold = min(found.threshold, most)

    def _shrink(self, band: Band, factor: float, sent_at: float, now: float) -> None:
        if sent_at <= band.shrunk_at:
            return
        band.window = band.threshold = max(self._options.min_window, band.window * factor)
        band.shrunk_at = now

    def _close(self, band: Band, until: float) -> None:
        """Close the band until `until`. It reopens in slow start from the minimum window."""
        band.closed_until = max(band.closed_until, until)
        band.window = self._options.min_window

    def _hold_above(self, band: int, now: float) -> None:
        for above in self.bands[:band]:
            above.held_until = max(above.held_until, now + self._options.hold_duration)
            above.held_since = now


class _Flight(msgspec.Struct, frozen=True):
    band: int
    sent_at: float


class AimdGate(Gate):
    """Admits requests within their band's window and adapts it to the responses."""

    gate_type = "aimd"

    def __init__(self, parameters: AimdParameters, sources: GateSources) -> None:
        self._parameters = parameters
        self._windows = Windows(parameters)
        self._clock = sources.clock
        self._jitter = sources.jitter
        self._log = sources.log
        self._flights: dict[str, _Flight] = {}
        self._waiters = [Waiters() for _ in BANDS]

    async def start(self) -> None:
        self._log.info(
            "gate started",
            gate=self.gate_type,
            pool=self._parameters.pool,
            min_window=self._parameters.min_window,
            max_window=self._parameters.max_window,
        )

    async def renewed(self, new: Gate, discarded: list[Gate]) -> Gate:
        """Keep the windows if the parameters are unchanged."""
        if isinstance(new, AimdGate) and new._parameters == self._parameters:
            return self
        return await super().renewed(new, discarded)

    def budget(self) -> float:
        """Largest free fraction of any band's window."""
        now = self._clock()
        return max(
            self._windows.room(number, now) / max(1.0, band.window) for number, band in enumerate(self._windows.bands)
        )

    def room(self, labels: Mapping[str, str] = NO_LABELS) -> int:
        """Free slots of the labels' band. Without labels, the most of any band in use."""
        now = self._clock()
        if CLASSIFICATION in labels or self._parameters.tier_label in labels:
            return self._windows.room(band_of(labels, self._parameters.tier_label), now)
        lowest = len(BANDS) - 1
        used = [number for number, band in enumerate(self._windows.bands) if band.in_flight] or [lowest]
        return max(self._windows.room(number, now) for number in {*used, lowest})

    async def admit(self, request: Request) -> Verdict:
        """Admit while the band's window has room. If full, hold reserved requests and refuse overflow."""
        now = self._clock()
        band = band_of(request.labels, self._parameters.tier_label)
        if self._windows.room(band, now) > 0:
            self._windows.bands[band].in_flight += 1
            key = claim_name(request)
            flight = self._flights[key] = _Flight(band, now)
            return Go(CountedSlot(partial(self.leave, key, flight)))
        closed_seconds = max(0.0, self._windows.bands[band].closed_until - now)
        reason = _why_closed(self._windows.bands[band], now)
        if band < BANDS.index(f"{OVERFLOW}-interactive"):
            return Hold(reason, self._wait_for(band))
        return Refuse(closed_seconds + jittered(_FULL_RETRY_SECONDS, self._jitter()), reason)

    async def wait_open(self, until_at: float) -> bool:
        """Wait for room in the lowest band, that of requests without labels."""
        return await self._wait_for(len(BANDS) - 1)(until_at)

    def observe(self, request: Request, feedback: Feedback) -> None:
        """Adapt the window of the band in which the request was admitted."""
        flight = self._flights.get(claim_name(request))
        if flight is None:
            return
        now = self._clock()
        if feedback.band_headroom is not None:
            self._windows.cap(flight.band, max(0.0, feedback.band_headroom))
        sign = sign_of(feedback)
        if sign is Sign.ACCEPTED:
            queued = None if feedback.queue_duration_ms is None else feedback.queue_duration_ms / 1000
            self._windows.accepted(flight.band, flight.sent_at, now, queued)
        elif sign is Sign.NO_CAPACITY:
            hint = feedback.retry_after_seconds
            hint = None if hint is None else min(hint, _LONGEST_CLOSE_SECONDS)
            self._windows.rejected(flight.band, flight.sent_at, now, hint)
        elif sign is Sign.EXPIRED:
            self._windows.expired(flight.band, flight.sent_at, now)
        self._wake()

    def leave(self, key: str, flight: _Flight) -> None:
        self._windows.bands[flight.band].in_flight -= 1
        if self._flights.get(key) is flight:
            del self._flights[key]
        self._wake()

    def state(self) -> GateState:
        """State of the gate; `inner` has the windows of used bands."""
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
            while self._windows.room(band, now := self._clock()) == 0:
                if time.time() >= until_at:
                    return False
                closed_seconds = self._windows.bands[band].closed_until - now
                is_closed = closed_seconds > 0
                await self._waiters[band].wait(min(until_at, time.time() + closed_seconds) if is_closed else until_at)
            return True

        return wait_open

    def _wake(self) -> None:
        now = self._clock()
        for band, waiters in enumerate(self._waiters):
            waiters.wake(self._windows.room(band, now))


def _why_closed(band: Band, now: float) -> str:
    return "closed by Retry-After" if band.closed_until > now else "window full"


class Sign(Enum):
    """What a response shows about the gateway's capacity."""

    ACCEPTED = "accepted"
    NO_CAPACITY = "no capacity"
    EXPIRED = "expired in the gateway's queue"
    NOTHING = "nothing"


def sign_of(feedback: Feedback) -> Sign:
    """Classify a response by its dropped-reason header, else by its status.

    A 429 without a reason is a rejection. Other errors do not show the capacity. An eviction does not either: the
    gateway had admitted the request, and dropped it for a more urgent one.
    """
    if feedback.dropped_reason == "rejected-saturated":
        return Sign.NO_CAPACITY
    if feedback.dropped_reason == "rejected-ttl-expired":
        return Sign.EXPIRED
    if feedback.dropped_reason or feedback.status_code is None:
        return Sign.NOTHING
    if feedback.status_code == 429:
        return Sign.NO_CAPACITY
    return Sign.ACCEPTED if 200 <= feedback.status_code < 300 else Sign.NOTHING
