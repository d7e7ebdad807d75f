"""Breaker layer: the circuit breaker and the retry budget of each gateway.

A refused request becomes a retry that does not count as an attempt. At the push door it first waits, as at a closed
gate, because a nack would use up a delivery attempt. A poller's request returns to its queue, and the poller claims
only as many as the circuit admits.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Callable
from typing import Final

import msgspec

from handlers.backoff import jittered
from handlers.contract.request import Request
from handlers.forward.forward import AttemptOptions, Forward, expired
from handlers.forward.middleware.circuit import Circuit, CircuitOptions, CircuitState, Pass
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
        began_at, most_seconds = self._clock(), options.seconds or 0.0
        seconds = min(most_seconds, request.deadline - began_at) / 2
        entered = await breaker.wait(request, reason, seconds, self._jitter)
        spent = self._clock() - began_at
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
"""Most retries that can be saved, for a burst of failures after a calm period."""
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
