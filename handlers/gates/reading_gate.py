"""A budget made of one number: the rule, what holds while the number is missing, and how it is shown.

`prometheus-*`, `endpoint-scrape` and `redis` are this with a source and a rule each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from handlers.contract.request import Request
from handlers.gates.feed import GateLog, SampleSource
from handlers.gates.gate import CLOSED_RETRY_SECONDS, Gate, GateState, Go, Refuse, Share, Verdict
from handlers.gates.parameters import choice, parameter, seconds

OPEN: Final = "open"
CLOSED: Final = "closed"
HOLD: Final = "hold"
FALLBACK: Final = "fallback"
SHARE: Final = "share"
HEADROOM: Final = "headroom"
_AIM_BELOW: Final = 0.02  # part of the threshold that a headroom leaves free


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingParameters:
    """What every gate of one number takes beside its own.

    `on_missing` is what holds while the source is missing: `open`, `closed`, or `hold` the last reading for
    `hold_seconds`. Without it (and after the hold) `fallback` holds, as the reference does.
    `budget_means` is `share` (of the slots, in use at a time) or `headroom` (on top of what the reading
    has counted: right for a metric in which our own requests show up, with as many slots as the inference
    pool has places; a share of such a metric settles at about half of what is idle).
    """

    on_missing: str = parameter(choice(OPEN, CLOSED, HOLD), default=FALLBACK)
    hold_seconds: float = parameter(seconds(), default=60.0)
    budget_means: str = parameter(choice(SHARE, HEADROOM), default=SHARE)


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
    """What the gate says at one moment; `in_force` is the rule for a missing source, if one is."""

    published: float
    part: float
    value: float | None
    at: float
    in_force: str


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
        # A rule for a missing source is no measurement: it cannot come on top of anything.
        if self._parameters.budget_means == HEADROOM and not now.in_force:
            # Unscaled, and a little below the threshold: who aims at it meets a closed gate at every
            # other reading, and the pool swings between full and empty.
            aim = now.published - _AIM_BELOW * self._rule.full
            return (Share(min(1.0, now.published), headroom=aim, at=now.at),)
        return (Share(now.part),)

    async def admit(self, request: Request) -> Verdict:  # noqa: ARG002 - a budget is for all alike
        """Go unless closed: the pool counts what an open budget allows."""
        now = self._now()
        return Go() if now.published > 0 else Refuse(CLOSED_RETRY_SECONDS, self._why_closed(now))

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
        published = max(0.0, self._rule.published(value))
        return _Now(published, self._rule.part(published), value, at, in_force)

    def _why_closed(self, now: _Now) -> str:
        if now.published > 0:
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
