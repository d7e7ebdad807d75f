"""Breaker layer: the circuit breaker and the retry budget of each gateway.

A refused request becomes a retry that does not count as an attempt. At the push door it first waits, as at a closed
gate, because a nack would use up a delivery attempt. A poller's request returns to its queue, and the poller claims
only as many as the circuit admits.

A single request cannot open the circuit: a request that fails several times counts once, and a retry counts less than a
first attempt. Each success ends the run of failures; the failed requests become suspects, whose further failures hardly
count. So a tenant whose requests always fail cannot keep the circuit open. In an outage nothing succeeds, so the
circuit opens after a few requests.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections import deque
from collections.abc import Callable
from enum import Enum, StrEnum
from typing import Final

import msgspec

from handlers.backoff import jittered
from handlers.contract.request import Request
from handlers.forward.forward import AttemptOptions, Forward, expired
from handlers.forward.outcome import Answered, Outcome, Retry
from handlers.telemetry.logs import Logger

CIRCUIT_OPEN: Final = "circuit_open"
CIRCUIT_RECOVERING: Final = "circuit_recovering"
RETRY_BUDGET: Final = "retry_budget"
NOT_THE_GATEWAYS: Final = frozenset({CIRCUIT_OPEN, "handler_unavailable", "handler_lost", "handler_refused"})
"""Reasons of retries that did not reach a gateway."""

_POLL_SECONDS: Final = 0.5
"""Average interval at which a waiting push tries to enter again."""
_LATER_SECONDS: Final = 1.0
"""Seconds for which free room is reserved for the longest-waiting requests."""
_SERVER_ERROR: Final = 500


def has_failed(outcome: Outcome) -> bool | None:
    """Whether the gateway failed; None if the outcome does not show it.

    None for a refusal because of load, since gates and backoff handle it: 429, 408, 425, and any response with a
    dropped-reason header (a gateway whose flow control evicts a request with 503 is healthy).
    """
    if isinstance(outcome, Retry) and outcome.reason in NOT_THE_GATEWAYS:
        return True
    if outcome.feedback is None or outcome.feedback.dropped_reason:
        return None
    status = outcome.feedback.status_code
    if status is None or status >= _SERVER_ERROR:
        return True
    return None if isinstance(outcome, Retry) else False


class BreakerOptions(msgspec.Struct, frozen=True):
    """Options of all breakers.

    `is_breaking` False: the circuit never opens. `retry_share`: retries per final result; 0: no limit.
    """

    is_breaking: bool = True
    retry_share: float = 0.25


def circuit_options(*, is_breaking: bool) -> CircuitOptions:
    """The default options, or those of a circuit that never opens."""
    return CircuitOptions() if is_breaking else CircuitOptions(least_failures=sys.maxsize)


class GatewayBreaker:
    """Circuit and retry budget of one gateway; `gateway` is its base URL."""

    def __init__(self, gateway: str, options: BreakerOptions, log: Logger) -> None:
        self._gateway = gateway
        self._log = log
        self.circuit = Circuit(circuit_options(is_breaking=options.is_breaking), on_change=self._log_change)
        self.budget = RetryBudget(options.retry_share) if options.retry_share else None
        self._waiting: dict[object, None] = {}
        self._is_newest_next = True
        self._due_at = 0.0

    def enter(self, request: Request) -> Pass | str:
        """Permission to call the gateway, or the reason of the refusal."""
        state = self.circuit.state
        # Only while the circuit is closed: probes must pass, and a recovering circuit has a lower limit anyway.
        is_budgeted = self.budget is not None and request.attempt > 0 and state is CircuitState.CLOSED
        if is_budgeted and self.budget is not None and not self.budget.spend(request.attempt):
            return RETRY_BUDGET
        return self.circuit.enter() or (CIRCUIT_OPEN if state is CircuitState.OPEN else CIRCUIT_RECOVERING)

    def leave(self, request: Request, entered: Pass, outcome: Outcome | None) -> None:
        """End the call; `outcome` is None if it was cancelled."""
        self.circuit.leave(
            entered,
            None if outcome is None else has_failed(outcome),
            request=_key(request),
            is_retry=request.attempt > 0,
        )
        if self.budget and isinstance(outcome, Answered):
            self.budget.earn()

    async def wait(self, request: Request, reason: str, seconds: float, jitter: Callable[[], float]) -> Pass | str:
        """Wait up to `seconds` for the permission that was denied for `reason`.

        Returns the latest reason if it is still denied. While the circuit is not closed, every second permission goes
        to the newest waiting request. Otherwise many requests that always fail could block later requests, whose
        success would show that the gateway works.
        """
        ticket = object()
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        entered: Pass | str = reason
        if not self.circuit.has_just_failed(_key(request)):
            self._waiting[ticket] = None
        try:
            while isinstance(entered, str) and loop.time() < until:
                await asyncio.sleep(min(jittered(_POLL_SECONDS, jitter()), max(0.0, until - loop.time())))
                entered = self._enter_in_turn(request, ticket)
        finally:
            self._waiting.pop(ticket, None)
        return entered

    def _enter_in_turn(self, request: Request, ticket: object) -> Pass | str:
        state, is_newcomer = self.circuit.state, ticket in self._waiting
        if state is CircuitState.OPEN and not is_newcomer and self._waiting and not self._is_overdue():
            return CIRCUIT_OPEN
        is_passed_over = is_newcomer and self._is_newest_next and ticket is not next(reversed(self._waiting))
        if state is not CircuitState.CLOSED and is_passed_over and not self._is_overdue():
            return CIRCUIT_OPEN if state is CircuitState.OPEN else CIRCUIT_RECOVERING
        entered = self.enter(request)
        if isinstance(entered, Pass):
            self._is_newest_next, self._due_at = not self._is_newest_next, 0.0
        return entered

    def _is_overdue(self) -> bool:
        """Whether the longest-waiting requests have not used free room."""
        now = time.monotonic()
        if self.circuit.room() < 1:
            self._due_at = 0.0
        elif not self._due_at:
            self._due_at = now
        return bool(self._due_at) and now - self._due_at >= _LATER_SECONDS

    def _log_change(self, state: CircuitState) -> None:
        level = self._log.warning if state is CircuitState.OPEN else self._log.info
        level("circuit changed", gateway=self._gateway, state=state)


def _key(request: Request) -> int:
    return hash((request.id, request.request_token))


class GatewayBreakers:
    """The breakers of a process, one per gateway. They outlive a configuration reload."""

    def __init__(self, options: BreakerOptions, log: Logger) -> None:
        self._options = options
        self._log = log
        self._breakers: dict[str, GatewayBreaker] = {}

    def of(self, gateway: str) -> GatewayBreaker:
        """The breaker of the gateway with this base URL."""
        breaker = self._breakers.get(gateway)
        if breaker is None:
            breaker = self._breakers[gateway] = GatewayBreaker(gateway, self._options, self._log)
        return breaker

    def open_circuits(self) -> int:
        return sum(breaker.circuit.state is not CircuitState.CLOSED for breaker in self._breakers.values())


class BreakerForward:
    """The breaker layer; `gateway_of` returns the base URL for a queue.

    `clock` returns Unix seconds, `jitter` a random number in [0, 1).
    """

    def __init__(
        self,
        forward: Forward,
        gateway_of: Callable[[str], str],
        breakers: GatewayBreakers,
        *,
        clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._forward = forward
        self._gateway_of = gateway_of
        self._breakers = breakers
        self._clock = clock
        self._jitter = jitter

    async def forward(self, request: Request, options: AttemptOptions) -> Outcome:
        """Make one attempt if the gateway's breaker admits it in time."""
        breaker = self._breakers.of(self._gateway_of(request.queue))
        entered = breaker.enter(request)
        if isinstance(entered, str) and options.seconds is not None:
            entered, options = await self._wait(breaker, request, entered, options)
        if isinstance(entered, str):
            return later(request, options, entered, self._clock(), self._jitter())
        outcome: Outcome | None = None
        try:
            outcome = await self._forward(request, options)
        finally:
            breaker.leave(request, entered, outcome)
        return outcome

    async def _wait(
        self, breaker: GatewayBreaker, request: Request, reason: str, options: AttemptOptions
    ) -> tuple[Pass | str, AttemptOptions]:
        """Wait for at most half of the remaining time. The attempt needs the rest."""
        began_at, most_seconds = time.monotonic(), options.seconds or 0.0
        seconds = min(most_seconds, request.deadline - self._clock()) / 2
        entered = await breaker.wait(request, reason, seconds, self._jitter)
        spent = time.monotonic() - began_at
        return entered, msgspec.structs.replace(options, seconds=max(0.0, most_seconds - spent))


def later(request: Request, options: AttemptOptions, reason: str, now: float, jitter: float) -> Outcome:
    """The outcome of a refused request.

    `now` is in Unix seconds, `jitter` a random number in [0, 1).
    """
    left = request.deadline - now
    # The budget grows slowly, so an early retry would be refused again.
    least = 10.0 if reason == RETRY_BUDGET else 1.0
    delay = max(least * (1.0 + 2.0 * jitter), options.earliest_retry_seconds)
    if delay >= left:
        delay = left / 2
    if delay < options.earliest_retry_seconds or delay <= 0:
        return expired(request, None)
    return Retry(delay, reason, counts_attempt=False)


_MOST: Final = 100.0
"""Maximum number of retries that can be saved, for a burst of failures after a calm period."""
_PER_SECOND: Final = 1.0
_MOST_KEPT: Final = 20


class RetryBudget:
    """Limits retries to one per second plus a `share` of final results.

    First attempts are free. A later retry leaves room for earlier ones, so that many requests that always fail do not
    use up the retries of those that failed once: the n-th retry needs room for n, at most for 20. `clock` returns
    monotonic seconds.
    """

    def __init__(self, share: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._share = share
        self._clock = clock
        self._left = _MOST
        self._at = clock()

    def earn(self) -> None:
        self._left = min(_MOST, self._left + self._share)

    def spend(self, attempt: int) -> bool:
        """Take one retry from the budget; False if it is too small for this one. `attempt` is 1 for the first retry."""
        now = self._clock()
        self._left = min(_MOST, self._left + (now - self._at) * _PER_SECOND)
        self._at = now
        if self._left < min(attempt, _MOST_KEPT):
            return False
        self._left -= 1
        return True


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

        Equal to `room`, except that with an open circuit it is 0 for `probe_seconds` after a claim.
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
