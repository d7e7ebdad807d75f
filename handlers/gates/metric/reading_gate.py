"""A budget made of one number: the rule, what holds while the number is missing, and how it is shown.

`prometheus-*`, `endpoint-scrape` and `redis` are this with a source and a rule each.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from handlers.contract.request import Request
from handlers.gates.gate import (
    CLOSED_RETRY_SECONDS,
    NO_LABELS,
    Answer,
    Gate,
    GateState,
    Go,
    Refuse,
    Share,
    Verdict,
)
from handlers.gates.parameters import choice, number, parameter, seconds
from handlers.gates.sources import GateLog, SampleSource

OPEN: Final = "open"
CLOSED: Final = "closed"
HOLD: Final = "hold"
FALLBACK: Final = "fallback"
_TOO_MANY: Final = 429
_MOST_TURNED_AWAY: Final = 10_000  # more than a pool has slots
SHARE: Final = "share"
HEADROOM: Final = "headroom"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingParameters:
    """What every gate of one number takes beside its own.

    `on_missing` is what holds while the source is missing: `open`, `closed`, or `hold` the last reading for
    `hold_seconds`. Without it (and after the hold) `fallback` holds, as the reference does.
    `budget_means` is `share` (of the slots, in use at a time) or `headroom` (on top of what the reading
    has counted: right for a metric in which our own requests show up, with as many slots as the inference
    pool has places; a share of such a metric settles at about half of what is idle).
    """

    on_missing: str = parameter(
        choice(OPEN, CLOSED, HOLD),
        default=FALLBACK,
        means=(
            "What holds while the source gives no reading: `open` (budget 1), `closed` (budget 0), or "
            "`hold`: the last reading goes on to hold for `hold_seconds`. Unset, and after the hold: "
            "`fallback`."
        ),
    )
    hold_seconds: float = parameter(
        seconds(), default=60.0, means="With `on_missing: hold`, seconds for which the last reading holds."
    )
    budget_means: str = parameter(
        choice(SHARE, HEADROOM),
        default=SHARE,
        means=(
            "`share`: queued requests may use that share of the pool's slots (`workers`). `headroom`: "
            "so many slots *on top of* what the reading counted; right for a metric that counts our own "
            "requests too."
        ),
    )
    reading_lag_seconds: float = parameter(
        seconds(),
        default=15.0,
        means=(
            "With `headroom`: age of the figures when they are read, in seconds (the scrape interval, "
            "or what the page caches). Requests sent within this time are taken as not counted yet. Too "
            "small: they are counted as idle slots again and the pool is overfilled. Too large: counted "
            "twice, and slots stay idle."
        ),
    )
    hold_back: float = parameter(
        number(least=-0.5, below=1),
        default=0.02,
        means=(
            "With `headroom`: fraction of *all the pool's slots* (`workers`) that is left free. 0.04 of "
            "64 slots leaves 2.56 free. Negative: asks for more than is free, for gateways that refuse "
            "or evict by priority."
        ),
    )


@dataclass(frozen=True, slots=True)
class Rule:
    """From a value to a budget.

    `published` is the contract's own figure; `full` the largest it can be: then the whole pool may be used.
    `threshold` is where the gate closes, for people. `fallback` is the budget while the value is missing.
    """

    published: Callable[[float], float]
    threshold: float
    full: float
    fallback: float

    def part(self, published: float) -> float:
        """The part of a pool's slots that a published budget stands for."""
        return min(1.0, max(0.0, published / self.full))


@dataclass(frozen=True, slots=True)
class _Now:
    """What the gate says at one moment; `in_force` is the rule for a missing source, if one is.

    With a `headroom` the gate is not closed at its threshold: what finishes may be replaced, less what the
    reading is above it. A pool that closes whole at each reading over the threshold swings, and is never full.
    """

    published: float
    part: float
    value: float | None
    at: float
    in_force: str
    headroom: float | None = None


class ReadingGate(Gate):
    """Opens and closes by one number. `absent` is the value of a source that has no such number."""

    def __init__(
        self,
        source: SampleSource,
        rule: Rule,
        parameters: ReadingParameters,
        *,
        log: GateLog,
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
        # The last number, kept apart: a source that answers without one replaces its reading.
        self._last: tuple[float, float] | None = None
        self._turned_away: deque[float] = deque(maxlen=_MOST_TURNED_AWAY)
        self._told = ""
        self._told_detail = ""

    async def start(self) -> None:
        """Read once, tell what came of it, and go on reading."""
        if self._is_started:
            return
        self._source.listen(self._tell_changes)
        await self._source.start()
        self._is_started = True
        now = self._now()
        self._told = now.in_force
        self._log.info(
            "gate reads",
            gate=self.gate_type,
            pool=self._label,
            source=self._source.name,
            closes_at=self._rule.threshold,
            value=now.value,
            budget=now.published,
            budget_means=self._parameters.budget_means,
            on_missing=self._parameters.on_missing,
            in_force=now.in_force,
            why=self._source.failure,
        )

    async def aclose(self) -> None:
        """Stop reading."""
        if self._is_started:
            self._is_started = False
            await self._source.aclose()

    def budget(self) -> float:
        """The published budget: the contract's own rule."""
        return self._now().published

    def shares(self) -> tuple[Share, ...]:
        """The budget as a part of the pool: an idle source gives the whole of it."""
        now = self._now()
        if now.headroom is None:
            return (Share(now.part),)
        while self._turned_away and self._turned_away[0] <= now.at:
            self._turned_away.popleft()
        return (
            Share(
                min(1.0, now.published),
                headroom=now.headroom,
                at=now.at,
                lag_seconds=self._parameters.reading_lag_seconds,
                fewer=len(self._turned_away),
            ),
        )

    def shares_pool(self) -> bool:
        """Yes: all processes read the same number."""
        return True

    def room(self, labels: Mapping[str, str] = NO_LABELS) -> int | None:  # noqa: ARG002 - a budget is for all
        """None unless closed: the pool counts what an open budget allows."""
        return 0 if self._is_closed(self._now()) else None

    def observe(self, request: Request, answer: Answer) -> None:  # noqa: ARG002 - a budget is for all alike
        """A slot that the gateway took back is not filled again before there is a new reading."""
        if self._parameters.budget_means == HEADROOM and (
            answer.dropped_reason or answer.status_code == _TOO_MANY
        ):
            self._turned_away.append(self._clock())

    async def admit(self, request: Request) -> Verdict:  # noqa: ARG002 - a budget is for all alike
        """Go unless closed: the pool counts what an open budget allows."""
        now = self._now()
        return Refuse(CLOSED_RETRY_SECONDS, self._why_closed(now)) if self._is_closed(now) else Go()

    def state(self) -> GateState:
        """Value, closing point, and the rule in force while the source is missing."""
        now = self._now()
        return GateState(
            self.gate_type,
            budget=now.published,
            value=now.value,
            threshold=self._rule.threshold,
            is_source_available=not now.in_force,
            on_missing=now.in_force,
            why_closed=self._why_closed(now),
            label=self._label,
        )

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
        # A rule for a missing source is no measurement: it cannot come on top of anything.
        is_headroom = self._parameters.budget_means == HEADROOM and not in_force
        headroom = left - self._parameters.hold_back * self._rule.full if is_headroom else None
        return _Now(published, self._rule.part(published), value, at, in_force, headroom)

    def _is_closed(self, now: _Now) -> bool:
        return now.published <= 0 and now.headroom is None

    def _why_closed(self, now: _Now) -> str:
        if not self._is_closed(now):
            return ""
        if now.value is None:
            return f"source missing: {self._source.failure or 'it has no sample'}"
        return f"value {now.value:.4g}, closes at {self._rule.threshold:.4g}"

    def _tell_changes(self) -> None:
        """Say when a rule for a missing source comes into force, or another source takes over."""
        if not self._is_started:
            return
        now = self._now()
        if now.in_force != self._told:
            self._told = now.in_force
            say = self._log.warning if now.in_force else self._log.info
            say(
                "gate on_missing in force" if now.in_force else "gate reads its source again",
                gate=self.gate_type,
                pool=self._label,
                in_force=now.in_force,
                budget=now.published,
                why=self._source.failure or "no sample",
            )
        reading = self._source.reading
        if reading is not None and not now.in_force and reading.value.detail != self._told_detail:
            self._told_detail = reading.value.detail
            self._log.info(
                "gate source chosen", gate=self.gate_type, pool=self._label, source=self._told_detail
            )
