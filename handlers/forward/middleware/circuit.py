"""Circuit breaker of one gateway: closed, open or recovering.

A single request cannot open it: a request that fails several times counts once, and a retry counts less than a first
attempt. Each success ends the run of failures; the failed requests become suspects, whose further failures hardly
count. So a tenant whose requests always fail cannot keep the circuit open. In an outage nothing succeeds, so the
circuit opens after a few requests.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from enum import Enum, StrEnum
from typing import Final

import msgspec


class CircuitState(StrEnum):
    """States of a circuit."""

    CLOSED = "closed"
    """All calls may begin."""
    OPEN = "open"
    """One call per second may begin, as a probe."""
    RECOVERING = "recovering"
    """A limited number of calls may be in flight; it grows with each success."""


class Pass(Enum):
    """Permission to make one call; return it with `Circuit.leave`."""

    CALL = "a call"
    PROBE = "a probe"


class CircuitOptions(msgspec.Struct, frozen=True):
    """Rules for opening and recovery.

    Failures since the last success are counted, each request once. A failed first attempt counts 1, a retry
    `retry_weight`, and a suspect (a request that failed before another one succeeded) `suspect_weight`.

    A closed circuit opens at `least_failures` if nothing succeeded in the last `window_seconds`. Otherwise it opens
    when the failures, multiplied by the share of successes in the window, reach `failures_in_a_row`: after 50
    failures if everything succeeded before, after 250 if a fifth did. A recovering circuit uses 3 instead of
    `least_failures`, and `first_limit` instead of `failures_in_a_row`.

    At most `most_probes` probes may be unanswered. Recovery starts with `first_limit` calls in flight. It ends at
    `last_limit`, or after `window_seconds` in which the circuit did not open again. If it opens again, the next
    recovery uses twice `first_limit`, and those after it three times: probably many waiting requests always fail.
    """

    window_seconds: float = 10.0
    least_failures: int = 10
    failures_in_a_row: int = 50
    retry_weight: float = 0.25
    suspect_weight: float = 0.05
    probe_seconds: float = 1.0
    most_probes: int = 4
    first_limit: int = 4
    last_limit: int = 256


_UNBOUNDED: Final = 1_000_000_000
_LEAST_WHILE_RECOVERING: Final = 3
_SUSPECT_SECONDS: Final = 120.0
"""Seconds for which a request stays a suspect: twice the longest backoff, so longer than until its next retry."""
_MOST_SUSPECTS: Final = 10_000
_MOST_FIRST_LIMITS: Final = 3
_LEAST_SHARE: Final = 0.1
"""Lower bound of the share of successes in the rule above, so that an outage of an unreliable gateway is noticed."""


class Circuit:
    """One gateway's breaker. `clock` returns monotonic seconds; `on_change` is called with each new state."""

    def __init__(
        self,
        options: CircuitOptions,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[CircuitState], None] = lambda _state: None,
    ) -> None:
        self._options = options
        self._clock = clock
        self._on_change = on_change
        self._evidence = _Evidence(options.window_seconds)
        self._first_limit = self._limit = options.first_limit
        self._probe_at = 0.0
        self._claim_at = 0.0
        self._probes = 0
        self._since = 0.0
        self._in_flight = 0
        self.state = CircuitState.CLOSED

    def room(self) -> int:
        """The number of calls that may begin now."""
        match self.state:
            case CircuitState.CLOSED:
                return _UNBOUNDED
            case CircuitState.RECOVERING:
                return max(0, self._limit - self._in_flight)
            case CircuitState.OPEN:
                is_due = self._clock() >= self._probe_at and self._probes < self._options.most_probes
                return 1 if is_due else 0

    def claimable(self) -> int:
        """The number of requests that a poller should claim now.

        It equals `room`, except in an open circuit, where it is 0 for `probe_seconds` after a claim.
        """
        is_claimed = self.state is CircuitState.OPEN and self._clock() < self._claim_at
        return 0 if is_claimed else self.room()

    def claimed(self) -> None:
        """Record that a poller has claimed requests, which will enter soon."""
        if self.state is CircuitState.OPEN:
            self._claim_at = self._clock() + self._options.probe_seconds

    def has_just_failed(self, request: int) -> bool:
        """Whether this request failed recently. It would then be a poor probe."""
        now = self._clock()
        return self._evidence.has_failed(request, now) or self._evidence.is_suspect(request, now)

    def enter(self) -> Pass | None:
        """Permission for one call, or None. Return it with `leave`."""
        if self.state is not CircuitState.CLOSED and self.room() < 1:
            return None
        self._in_flight += 1
        if self.state is not CircuitState.OPEN:
            return Pass.CALL
        self._probes += 1
        self._probe_at = self._clock() + self._options.probe_seconds
        return Pass.PROBE

    def leave(self, entered: Pass, has_failed: bool | None, *, request: int, is_retry: bool = False) -> None:
        """End a call; `request` is any number that identifies its request.

        `has_failed` is None if the outcome does not show the gateway's health (refused for load, cancelled).
        """
        self._in_flight -= 1
        if entered is Pass.PROBE:
            self._probes -= 1
        if has_failed is None:
            return
        now = self._clock()
        if has_failed:
            weight = self._weight(now, request, is_retry=is_retry)
            self._evidence.add_failure(now, request, weight)
            self._fail(now, is_first=weight == 1.0)
        else:
            self._succeed(now)

    def _weight(self, now: float, request: int, *, is_retry: bool) -> float:
        if self._evidence.is_suspect(request, now):
            return self._options.suspect_weight
        return self._options.retry_weight if is_retry else 1.0

    def _fail(self, now: float, *, is_first: bool) -> None:
        if self.state is CircuitState.OPEN:
            return
        options, is_recovering = self._options, self.state is CircuitState.RECOVERING
        least = min(_LEAST_WHILE_RECOVERING, options.least_failures) if is_recovering else options.least_failures
        overdue = self._first_limit if is_recovering else options.failures_in_a_row
        failures = self._evidence.failures_in_a_row(now)
        share = self._evidence.success_share(now)
        if failures >= least and (not share or failures * max(share, _LEAST_SHARE) >= overdue):
            self._probe_at = now + options.probe_seconds
            if is_recovering:
                most = _MOST_FIRST_LIMITS * options.first_limit
                self._first_limit = min(self._first_limit + options.first_limit, most)
            self._change(CircuitState.OPEN)
        elif is_recovering and is_first:
            # Two failures in a row suggest overload: halve the limit. One is probably the request's own fault.
            least_limit = min(options.first_limit, self._limit)
            self._limit = max(least_limit, self._limit // 2 if failures >= 2 else self._limit - 1)

    def _succeed(self, now: float) -> None:
        if self.state is CircuitState.OPEN:
            self._evidence.restart(now)
            self._limit = self._first_limit
            self._since = now
            self._change(CircuitState.RECOVERING)
        elif self.state is CircuitState.RECOVERING:
            self._limit += 1
            if self._limit >= self._options.last_limit or now - self._since >= self._options.window_seconds:
                self._first_limit = self._options.first_limit
                self._change(CircuitState.CLOSED)
        self._evidence.add_success(now)

    def _change(self, state: CircuitState) -> None:
        self.state = state
        self._on_change(state)


class _Evidence:
    """Recent outcomes of calls.

    Failures since the last success are kept by request, earlier outcomes as counts per second.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._run: dict[int, tuple[float, float]] = {}
        """Request to time and weight of its failure, oldest first."""
        self._run_weight = 0.0
        self._suspects: dict[int, float] = {}
        self._mix: deque[list[float]] = deque()
        """Second, failures, successes."""

    def add_failure(self, now: float, request: int, weight: float) -> None:
        _, before = self._run.pop(request, (0.0, 0.0))
        weight = max(weight, before)
        self._run[request] = (now, weight)
        self._run_weight += weight - before

    def add_success(self, now: float) -> None:
        row = self._row(now)
        row[2] += 1
        if not self._run:
            return
        row[1] += self.failures_in_a_row(now)
        for request in self._run:
            self._suspects.pop(request, None)
            self._suspects[request] = now
        while len(self._suspects) > _MOST_SUSPECTS:
            del self._suspects[next(iter(self._suspects))]
        self._run.clear()
        self._run_weight = 0.0

    def is_suspect(self, request: int, now: float) -> bool:
        """Whether this request failed and another one succeeded afterwards."""
        return now - self._suspects.get(request, -_SUSPECT_SECONDS) < _SUSPECT_SECONDS

    def has_failed(self, request: int, now: float) -> bool:
        at, _ = self._run.get(request, (-self._seconds, 0.0))
        return now - at < self._seconds

    def failures_in_a_row(self, now: float) -> float:
        """Summed weights of the requests that failed since the last success."""
        oldest = now - self._seconds
        while self._run:
            request, (at, weight) = next(iter(self._run.items()))
            if at >= oldest:
                break
            del self._run[request]
            self._run_weight -= weight
        return self._run_weight

    def success_share(self, now: float) -> float:
        """Share of successes in the window; 0 without any.

        Failures since the last success are left out.
        """
        self._forget(now)
        successes = sum(row[2] for row in self._mix)
        return successes / (successes + sum(row[1] for row in self._mix)) if successes else 0.0

    def restart(self, now: float) -> None:
        """Start with new evidence; requests that have failed become suspects."""
        self.add_success(now)
        self._mix.clear()

    def _row(self, now: float) -> list[float]:
        second = now // 1
        if not self._mix or self._mix[-1][0] != second:
            self._mix.append([second, 0.0, 0.0])
            self._forget(now)
        return self._mix[-1]

    def _forget(self, now: float) -> None:
        while self._mix and self._mix[0][0] < now - self._seconds:
            self._mix.popleft()
