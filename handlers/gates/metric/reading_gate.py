"""Base of the gates whose budget follows one number: `prometheus-*`, `endpoint-scrape`, `redis`.

Each of them has a source of the number and a rule that converts it to a budget. This module decides what applies while
the source is missing, and converts the budget to shares of the pool.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Annotated, Final, Literal

import msgspec
from msgspec.structs import replace

from handlers.contract.accepted import about
from handlers.contract.request import Request
from handlers.gates.gate import (
    CLOSED_RETRY_SECONDS,
    NO_LABELS,
    Feedback,
    Gate,
    Go,
    Refuse,
    Share,
    Verdict,
)
from handlers.gates.parameters import Duration
from handlers.gates.sources import NOT_READ_YET, MetricSource
from handlers.telemetry.dependencies import GateState
from handlers.telemetry.logs import Logger

OPEN: Final = "open"
CLOSED: Final = "closed"
HOLD: Final = "hold"
FALLBACK: Final = "fallback"
_TOO_MANY: Final = 429
_MOST_TURNED_AWAY: Final = 10_000  # more than the slots of any pool
SHARE: Final = "share"
HEADROOM: Final = "headroom"


Fallback = Annotated[float, about("Budget without a reading, 0 to 1, with `on_missing: fallback`.", ge=0, le=1)]
"""Type of the parameter that is the budget without a reading."""

Baseline = Annotated[
    float,
    about(
        "Free fraction of the pool at which the gate closes, 0 to 1. The budget is the free fraction less this. "
        "With `share`, the budget of an idle pool allows all slots; `headroom` keeps this fraction free.",
        ge=0,
        lt=1,
    ),
]
"""Type of the parameter that keeps slots free."""


class ReadingParameters(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of all gates that follow one number.

    The reference always applies `fallback`. If the metric also counts queued requests, `share` uses only about half of
    the idle capacity; `headroom` does not have this problem.
    """

    on_missing: Annotated[
        Literal["fallback", "open", "closed", "hold"],
        about(
            "What applies while the source cannot be read. `open`: the whole pool may be used. "
            "`closed`: nothing is sent. `hold`: the last reading stays in force for `hold_seconds`, "
            "then `fallback` applies. `fallback`: the parameter `fallback` applies."
        ),
    ] = FALLBACK
    hold_seconds: Annotated[Duration, about("With `on_missing: hold`, seconds for which the last reading holds.")] = (
        60.0
    )
    budget_means: Annotated[
        Literal["share", "headroom"],
        about(
            "`share`: queued requests may use this share of the pool's slots (`workers`). "
            "`headroom`: they may use this share *in addition to* the slots in use at the reading; "
            "for metrics that count queued requests too."
        ),
    ] = SHARE
    reading_lag_seconds: Annotated[
        Duration,
        about(
            "With `headroom`: how old the metric is when it is read, in seconds: Prometheus' scrape "
            "interval, or the page's cache time. Requests sent within this time use up the headroom, "
            "since the metric does not count them yet. Too small: too many requests are sent, and real-time "
            "requests wait. Too large: too few are sent, and slots stay idle."
        ),
    ] = 15.0
    hold_back: Annotated[
        float,
        about(
            "With `headroom`: fraction of *all the pool's slots* (`workers`) that queued requests "
            "leave free: 0.04 of 64 slots keeps 2.56 free. Negative: sends more than is free, for "
            "gateways that reject or evict queued requests by priority.",
            ge=-0.5,
            lt=1,
        ),
    ] = 0.02


class Rule(msgspec.Struct, frozen=True):
    """Conversion of a value to a budget.

    `published` computes the budget as the reference publishes it. `full` is its largest value, which allows the whole
    pool. `threshold` is the value at which the gate closes, `fallback` the budget without a value.
    """

    published: Callable[[float], float]
    threshold: float
    full: float
    fallback: float

    def part(self, published: float) -> float:
        """Fraction of the pool's slots that a published budget allows."""
        return min(1.0, max(0.0, published / self.full))


class _Now(msgspec.Struct, frozen=True):
    """The budget at one moment.

    `in_force` is the rule for a missing source, else empty. With a `headroom`, the gate does not close at its
    threshold: the slots in use are only reduced by the excess. If it closed at each such reading, the pool would
    oscillate.
    """

    published: float
    part: float
    value: float | None
    at: float
    in_force: str
    headroom: float | None = None


class ReadingGate(Gate):
    """A gate that follows one number. `absent` replaces it if the source lacks it."""

    def __init__(
        self,
        source: MetricSource,
        rule: Rule,
        parameters: ReadingParameters,
        *,
        log: Logger,
        clock: Callable[[], float],
        label: str = "",
        absent: float | None = None,
    ) -> None:
        self._source = source
        self._rule = rule
        self._parameters = parameters
        self._log = log
        self._clock = clock
        self._label = label
        self._absent = absent
        self._is_started = False
        # The last number, for `hold`: a later reading may lack it.
        self._last: tuple[float, float] | None = None
        self._turned_away: deque[float] = deque(maxlen=_MOST_TURNED_AWAY)
        self._reported = ""
        self._reported_detail = ""

    async def start(self) -> None:
        """Read once, log the result, and keep reading in the background."""
        if self._is_started:
            return
        self._source.listen(self._tell_changes)
        await self._source.start()
        self._is_started = True
        now = self._now()
        self._reported = now.in_force
        self._log.info(
            "gate started",
            gate=self.gate_type,
            source=self._source.name,
            closes_at=self._rule.threshold,
            value=now.value,
            budget=now.published,
            budget_means=self._parameters.budget_means,
            on_missing=self._parameters.on_missing,
            in_force=now.in_force,
            reason=self._source.failure,
        )

    async def aclose(self) -> None:
        if self._is_started:
            self._is_started = False
            self._source.forget(self._tell_changes)
            await self._source.aclose()

    def budget(self) -> float:
        """The published budget, computed by the reference's rule."""
        return self._now().published

    def shares(self) -> tuple[Share, ...]:
        """The budget as a share of the pool. The largest budget allows all slots."""
        now = self._now()
        if now.headroom is None:
            return (Share(now.part),)
        while self._turned_away and self._turned_away[0] <= now.at:
            self._turned_away.popleft()
        return (
            Share(
                min(1.0, max(0.0, now.headroom)),
                headroom=now.headroom,
                at=now.at,
                lag_seconds=self._parameters.reading_lag_seconds,
                fewer=len(self._turned_away),
            ),
        )

    def shares_pool(self) -> bool:
        return True

    def room(self, labels: Mapping[str, str] = NO_LABELS) -> int | None:  # noqa: ARG002 - a budget is for all
        """0 while closed, else None: the pool's `Allowance` limits an open budget."""
        return 0 if self._is_closed(self._now()) else None

    def observe(self, request: Request, feedback: Feedback) -> None:  # noqa: ARG002 - a budget is for all
        """After a rejection, leave one slot empty until the next reading."""
        if self._parameters.budget_means == HEADROOM and (feedback.dropped_reason or feedback.status_code == _TOO_MANY):
            self._turned_away.append(self._clock())

    async def admit(self, request: Request) -> Verdict:  # noqa: ARG002 - a budget is for all alike
        """`Go` unless closed: the pool's `Allowance` limits an open budget."""
        now = self._now()
        return Refuse(CLOSED_RETRY_SECONDS, self.state().why_closed) if self._is_closed(now) else Go()

    def state(self) -> GateState:
        """Value, threshold, and the rule in force while the source is missing."""
        now = self._now()
        state = GateState(
            self.gate_type,
            budget=now.published,
            value=now.value,
            threshold=self._rule.threshold,
            is_source_available=not now.in_force,
            on_missing=now.in_force,
            why_missing=self._why_missing() if now.in_force else "",
            label=self._label,
        )
        if now.published > 0:
            return state
        return replace(state, why_closed=state.reading or f"source missing: {self._why_missing()}")

    def _now(self) -> _Now:
        if not self._is_started:
            return _Now(0.0, 0.0, None, 0.0, CLOSED)
        reading = self._source.reading
        if not self._source.failure and reading is not None:
            value = self._absent if reading.value.value is None else reading.value.value
            if value is not None and not math.isnan(value):
                self._last = (value, reading.at)
                return self._of(value, reading.at, "")
        if self._parameters.on_missing == OPEN:
            return _Now(self._rule.full, 1.0, None, 0.0, OPEN)
        if self._parameters.on_missing == CLOSED:
            return _Now(0.0, 0.0, None, 0.0, CLOSED)
        return self._held() or self._fallen_back()

    def _held(self) -> _Now | None:
        if self._parameters.on_missing != HOLD or self._last is None:
            return None
        value, at = self._last
        if self._clock() - at > self._parameters.hold_seconds:
            return None
        return self._of(value, at, HOLD)

    def _fallen_back(self) -> _Now:
        published = self._rule.fallback
        return _Now(published, self._rule.part(published), None, 0.0, FALLBACK)

    def _of(self, value: float, at: float, in_force: str) -> _Now:
        left = self._rule.published(value)
        published = max(0.0, left)
        # A held reading is not current, so it is not added to the slots in use.
        is_headroom = self._parameters.budget_means == HEADROOM and not in_force
        headroom = left - self._parameters.hold_back * self._rule.full if is_headroom else None
        return _Now(published, self._rule.part(published), value, at, in_force, headroom)

    def _is_closed(self, now: _Now) -> bool:
        return now.published <= 0 and now.headroom is None

    def _why_missing(self) -> str:
        reading = self._source.reading
        if self._source.failure or reading is None:
            return self._source.failure or NOT_READ_YET
        return (reading.value.detail if reading.value.value is None else "") or "its value is not a number"

    def _tell_changes(self) -> None:
        """Log that `on_missing` applies or ends, or that the source has changed."""
        if not self._is_started:
            return
        now = self._now()
        if now.in_force != self._reported:
            self._reported = now.in_force
            log = self._log.warning if now.in_force else self._log.info
            log(
                "gate on_missing applied" if now.in_force else "gate source restored",
                gate=self.gate_type,
                source=self._source.name,
                in_force=now.in_force,
                budget=now.published,
                **({"reason": self._why_missing()} if now.in_force else {}),
            )
        reading = self._source.reading
        if reading is not None and not now.in_force and reading.value.detail != self._reported_detail:
            self._reported_detail = reading.value.detail
            self._log.info("gate source selected", gate=self.gate_type, source=self._reported_detail)
