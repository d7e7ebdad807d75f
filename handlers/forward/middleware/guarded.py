"""Forwarding that spares a gateway in trouble: a circuit breaker and a retry budget for each gateway.

What may not go now is a retry that counts as no attempt. A push waits for its turn as at a closed gate, since a
nack would burn one of its delivery attempts; an event of the poller goes back at once, and the poller, whose own
circuit sees it, claims no more than the probes.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from handlers.contract.request import Request
from handlers.forward.forward import Forward, Limits, expired
from handlers.forward.middleware.circuit import Circuit, CircuitOptions, CircuitState, Pass
from handlers.forward.middleware.retry_budget import RetryBudget
from handlers.forward.outcome import Answered, Outcome, Retry
from handlers.telemetry.logs import Logger

CIRCUIT_OPEN: Final = "circuit_open"
CIRCUIT_RECOVERING: Final = "circuit_recovering"
RETRY_BUDGET: Final = "retry_budget"
NOT_THE_GATEWAYS: Final = frozenset({CIRCUIT_OPEN, "handler_unavailable", "handler_lost", "handler_refused"})
"""Retries whose reason alone says that nobody served them."""

_LOOK_SECONDS: Final = 0.5
"""How often a push that waits looks again; some hundreds may wait."""
_SERVER_ERROR: Final = 500


def has_failed(outcome: Outcome) -> bool | None:
    """What an outcome says of the gateway's health: True, False, or None for nothing.

    A refusal for load says nothing: gates and backoff answer it. Such are 429, 408 and 425, and whatever names a reason
    for dropping the request (a flow control that evicts answers 503, and is in the best of health).
    """
    if isinstance(outcome, Retry) and outcome.reason in NOT_THE_GATEWAYS:
        return True
    if outcome.feedback is None or outcome.feedback.dropped_reason:
        return None
    status = outcome.feedback.status_code
    if status is None or status >= _SERVER_ERROR:
        return True
    return None if isinstance(outcome, Retry) else False


@dataclass(frozen=True, slots=True)
class GuardOptions:
    """`is_breaking` False: no circuit ever opens. `retry_share`: retries for each final answer; 0: no limit."""

    is_breaking: bool = True
    retry_share: float = 0.25


def circuit_options(*, is_breaking: bool) -> CircuitOptions:
    """The product's own figures, or a circuit that stays closed."""
    return CircuitOptions() if is_breaking else CircuitOptions(least_failures=sys.maxsize)


class Guard:
    """One gateway's circuit and budget."""

    def __init__(self, gateway: str, options: GuardOptions, log: Logger) -> None:
        self._gateway = gateway
        self._log = log
        self.circuit = Circuit(circuit_options(is_breaking=options.is_breaking), on_change=self._tell)
        self.budget = RetryBudget(options.retry_share) if options.retry_share else None

    def enter(self, request: Request) -> Pass | str:
        """Leave to call the gateway, or the reason why not now."""
        state = self.circuit.state
        # Not while it recovers: a probe must go, and its limit is the narrower one.
        is_budgeted = self.budget is not None and request.attempt > 0 and state is CircuitState.CLOSED
        if is_budgeted and self.budget is not None and not self.budget.spend():
            return RETRY_BUDGET
        return self.circuit.enter() or (CIRCUIT_OPEN if state is CircuitState.OPEN else CIRCUIT_RECOVERING)

    def leave(self, entered: Pass, outcome: Outcome | None) -> None:
        """The call is over; None where it was given up."""
        self.circuit.leave(entered, None if outcome is None else has_failed(outcome))
        if self.budget and isinstance(outcome, Answered):
            self.budget.earn()

    def _tell(self, state: CircuitState) -> None:
        level = self._log.warning if state is CircuitState.OPEN else self._log.info
        level("circuit changed", gateway=self._gateway, state=state)


class GuardedForward:
    """Forwards past each gateway's guard; `gateway_of` names the gateway of a queue.

    `guards` are by gateway; who comes after another one of the same options goes on with its guards. `clock` gives Unix
    seconds, `draw` a number in [0, 1).
    """

    def __init__(
        self,
        forward: Forward,
        gateway_of: Callable[[str], str],
        log: Logger,
        options: GuardOptions,
        *,
        guards: dict[str, Guard] | None = None,
        clock: Callable[[], float] = time.time,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._forward = forward
        self._gateway_of = gateway_of
        self._log = log
        self._options = options
        self._clock = clock
        self._draw = draw
        self.guards = {} if guards is None else guards

    def open_circuits(self) -> int:
        """Gateways that are spared now."""
        return sum(guard.circuit.state is not CircuitState.CLOSED for guard in self.guards.values())

    async def forward(self, request: Request, limits: Limits) -> Outcome:
        """One attempt, if the gateway's guard lets it go within the delivery's time."""
        guard = self._guard(request.queue)
        entered = guard.enter(request)
        if isinstance(entered, str):
            entered, limits = await self._wait(guard, request, limits, entered)
            if isinstance(entered, str):
                return self._later(request, limits, entered)
        outcome: Outcome | None = None
        try:
            outcome = await self._forward(request, limits)
        finally:
            guard.leave(entered, outcome)
        return outcome

    def _guard(self, queue: str) -> Guard:
        gateway = self._gateway_of(queue)
        guard = self.guards.get(gateway)
        if guard is None:
            guard = self.guards[gateway] = Guard(gateway, self._options, self._log)
        return guard

    async def _wait(
        self, guard: Guard, request: Request, limits: Limits, reason: str
    ) -> tuple[Pass | str, Limits]:
        """A delivery that can be held waits, half of its time at most: the attempt needs the rest."""
        if limits.seconds is None:
            return reason, limits
        seconds = min(limits.seconds, request.deadline - self._clock())
        until = self._clock() + seconds / 2
        entered: Pass | str = reason
        while isinstance(entered, str) and self._clock() < until:
            await asyncio.sleep(_LOOK_SECONDS * (0.5 + self._draw()))
            entered = guard.enter(request)
        spent = seconds / 2 - (until - self._clock())
        return entered, Limits(max(0.0, limits.seconds - spent), limits.earliest_retry_seconds)

    def _later(self, request: Request, limits: Limits, reason: str) -> Outcome:
        left = request.deadline - self._clock()
        # The budget grows slowly: coming back soon would only be refused again.
        least = 10.0 if reason == RETRY_BUDGET else 1.0
        delay = max(least * (1.0 + 2.0 * self._draw()), limits.earliest_retry_seconds)
        if delay >= left:
            delay = left / 2
        if delay < limits.earliest_retry_seconds or delay <= 0:
            return expired(request, None)
        return Retry(delay, reason, counts_attempt=False)


Dispatch = Callable[[Request, bytes], Awaitable[Outcome]]
"""As the poller's: the request and its body."""


def guarded_dispatch(
    dispatch: Dispatch, circuit: Circuit, draw: Callable[[], float] = random.random
) -> Dispatch:
    """Dispatching past one queue's circuit, whose room the poller asks for before it claims."""

    async def guarded(request: Request, body: bytes) -> Outcome:
        entered = circuit.enter()
        if entered is None:
            return Retry(1.0 + 2.0 * draw(), CIRCUIT_OPEN, counts_attempt=False)
        outcome: Outcome | None = None
        try:
            outcome = await dispatch(request, body)
        finally:
            circuit.leave(entered, None if outcome is None else has_failed(outcome))
        return outcome

    return guarded
