"""A circuit breaker: while most calls fail, one call a second probes, and the rest is not sent at all.

Closed, everything goes. It opens when at least half of the calls of the last seconds failed, and enough of them, or
when enough failed in a row: a gateway that dies after busy seconds must not first fail as often as it answered.
Open, one probe a second goes. A probe that succeeds begins the recovery, in which the number of calls in
flight may double with each round, so that a gateway that is just back is not buried under the backlog.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Final


class CircuitState(StrEnum):
    """What goes."""

    CLOSED = "closed"
    """Everything."""
    OPEN = "open"
    """A probe a second."""
    RECOVERING = "recovering"
    """A number of calls at a time that grows with each success."""


class Pass(Enum):
    """Leave to make one call; hand it back to `leave`."""

    CALL = "a call"
    PROBE = "a probe"


@dataclass(frozen=True, slots=True)
class CircuitOptions:
    """It opens when `least_failures` of the last `window_seconds` failed, and at least `failure_share` of all calls.

    `failures_in_a_row` open it whatever went before: as many as a server that restarts may reset at once, and more.

    `most_probes` bounds the probes that nobody has answered yet; the recovery starts with `first_limit`
    calls at a time and is over at `last_limit`, or after a window without a failure.
    """

    window_seconds: float = 10.0
    least_failures: int = 10
    failure_share: float = 0.5
    failures_in_a_row: int = 50
    probe_seconds: float = 1.0
    most_probes: int = 4
    first_limit: int = 4
    last_limit: int = 256


_UNBOUNDED: Final = 1_000_000_000


class Circuit:
    """One gateway's breaker. `clock` gives seconds that no clock change moves; `on_change` hears of new states."""

    def __init__(
        self,
        options: CircuitOptions,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[CircuitState], None] = lambda _state: None,
    ) -> None:
        self._options = options
        self._clock = clock
        self._on_change = on_change
        self._window = _Window(options.window_seconds)
        self._limit = options.first_limit
        self._probe_at = 0.0
        self._probes = 0
        self._since = 0.0
        self._in_flight = 0
        self._in_a_row = 0
        self.state = CircuitState.CLOSED

    def room(self) -> int:
        """How many more calls may begin now."""
        match self.state:
            case CircuitState.CLOSED:
                return _UNBOUNDED
            case CircuitState.RECOVERING:
                return max(0, self._limit - self._in_flight)
            case CircuitState.OPEN:
                is_due = self._clock() >= self._probe_at and self._probes < self._options.most_probes
                return 1 if is_due else 0

    def seconds_to_probe(self) -> float:
        """How long until a probe is due; 0 if one is, or if the circuit is not open."""
        return max(0.0, self._probe_at - self._clock()) if self.state is CircuitState.OPEN else 0.0

    def enter(self) -> Pass | None:
        """Leave to make a call, or None. Whoever has it must `leave`."""
        if self.state is not CircuitState.CLOSED and self.room() < 1:
            return None
        self._in_flight += 1
        if self.state is not CircuitState.OPEN:
            return Pass.CALL
        self._probes += 1
        self._probe_at = self._clock() + self._options.probe_seconds
        return Pass.PROBE

    def leave(self, entered: Pass, has_failed: bool | None) -> None:
        """A call is over; None where it says nothing of the gateway's health (refused for load, given up)."""
        self._in_flight -= 1
        if entered is Pass.PROBE:
            self._probes -= 1
        if has_failed is None:
            return
        now = self._clock()
        if self.state is CircuitState.OPEN:
            if not has_failed:
                self._recover(now)
            return
        self._window.add(now, has_failed=has_failed)
        self._in_a_row = self._in_a_row + 1 if has_failed else 0
        if has_failed:
            self._fail(now)
        elif self.state is CircuitState.RECOVERING:
            self._grow(now)

    def _fail(self, now: float) -> None:
        failures, calls = self._window.counts(now)
        is_recovering = self.state is CircuitState.RECOVERING
        least = min(3, self._options.least_failures) if is_recovering else self._options.least_failures
        is_sick = failures >= self._options.failure_share * calls
        is_dead = self._in_a_row >= self._options.failures_in_a_row
        if failures >= least and (is_sick or is_dead):
            self._probe_at = now + self._options.probe_seconds
            self._change(CircuitState.OPEN)
        elif is_recovering:
            self._limit = max(1, self._limit // 2)
            self._since = now

    def _recover(self, now: float) -> None:
        self._window.clear()
        self._in_a_row = 0
        self._limit = self._options.first_limit
        self._since = now
        self._change(CircuitState.RECOVERING)

    def _grow(self, now: float) -> None:
        self._limit += 1
        if self._limit >= self._options.last_limit or now - self._since >= self._options.window_seconds:
            self._change(CircuitState.CLOSED)

    def _change(self, state: CircuitState) -> None:
        self.state = state
        self._on_change(state)


class _Window:
    """Calls and failures of the last seconds, counted by the second."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._counts: deque[list[float]] = deque()

    def add(self, now: float, *, has_failed: bool) -> None:
        second = now // 1
        if not self._counts or self._counts[-1][0] != second:
            self._counts.append([second, 0, 0])
            self._forget(now)
        self._counts[-1][1] += has_failed
        self._counts[-1][2] += 1

    def counts(self, now: float) -> tuple[float, float]:
        """Failures, and all."""
        self._forget(now)
        return sum(row[1] for row in self._counts), sum(row[2] for row in self._counts)

    def clear(self) -> None:
        self._counts.clear()

    def _forget(self, now: float) -> None:
        while self._counts and self._counts[0][0] < now - self._seconds:
            self._counts.popleft()
