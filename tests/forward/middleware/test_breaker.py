"""Forwarding past a breaker: what counts as a failure, waiting, and recovery; nothing is lost."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable

import msgspec
import pytest

from handlers.contract.request import Request
from handlers.contract.result import ErrorCode, answered_result, error_result
from handlers.forward.forward import NO_OPTIONS, AttemptOptions
from handlers.forward.middleware.breaker import (
    CIRCUIT_OPEN,
    RETRY_BUDGET,
    BreakerForward,
    BreakerOptions,
    Circuit,
    CircuitOptions,
    CircuitState,
    GatewayBreakers,
    RetryBudget,
    has_failed,
)
from handlers.forward.outcome import Answered, Outcome, Retry
from handlers.gates.gate import Feedback
from handlers.telemetry.logs import get_logger

OK = Answered(answered_result("a", "", 200, b"{}"), Feedback(200))
DOWN = Retry(2.0, "connect", feedback=Feedback(None))
BUSY = Retry(2.0, "rejected", feedback=Feedback(429))


_ids = itertools.count()


def request(attempt: int = 0, queue: str = "q", seconds: float = 600.0, request_id: str = "") -> Request:
    return Request(
        id=request_id or f"r-{next(_ids)}",
        deadline=time.time() + seconds,
        payload=b"{}",
        queue=queue,
        attempt=attempt,
    )


class Gateway:
    """Gives scripted outcomes and counts calls."""

    def __init__(self, outcome: Outcome = OK) -> None:
        self.outcome = outcome
        self.calls = 0
        self.limits: list[AttemptOptions] = []

    async def forward(self, _request: Request, limits: AttemptOptions) -> Outcome:
        self.calls += 1
        self.limits.append(limits)
        return self.outcome


def breakers_of(**options: object) -> GatewayBreakers:
    return GatewayBreakers(msgspec.convert(options, BreakerOptions), get_logger("test"))


def breakers_at_one_moment() -> GatewayBreakers:
    """Of the queue `q`, no probe becomes due and no retry is earned by the time that a test takes."""
    breakers = breakers_of()
    breaker = breakers.of("q")
    breaker.circuit = Circuit(CircuitOptions(), lambda: 100.0)
    breaker.budget = RetryBudget(BreakerOptions().retry_share, lambda: 100.0)
    return breakers


def guarded(
    gateway: Gateway, breakers: GatewayBreakers | None = None, clock: Callable[[], float] = time.time
) -> BreakerForward:
    options = breakers or breakers_of()
    return BreakerForward(gateway.forward, lambda queue: queue, options, clock=clock, jitter=lambda: 0.0)


@pytest.mark.parametrize(
    ("outcome", "verdict"),
    [
        (OK, False),
        (Answered(answered_result("a", "", 404, b""), Feedback(404)), False),
        (Answered(answered_result("a", "", 503, b""), Feedback(503)), True),
        (Answered(error_result("a", "", ErrorCode.DEADLINE_EXCEEDED, ""), Feedback(None)), True),
        (Answered(error_result("a", "", ErrorCode.INVALID_REQUEST, "")), None),
        (DOWN, True),
        (BUSY, None),
        (Retry(1.0, "unavailable", feedback=Feedback(503)), True),
        (Retry(1.0, "unavailable", feedback=Feedback(503, dropped_reason="evicted")), None),
        (Retry(1.0, "gate_closed"), None),
        (Retry(1.0, "handler_unavailable"), True),
        (Retry(1.0, CIRCUIT_OPEN), True),
    ],
)
def test_outcomes_count_as_gateway_failures_or_successes_or_neither(outcome: Outcome, verdict: bool | None) -> None:
    assert has_failed(outcome) is verdict


async def test_while_the_circuit_is_open_requests_are_retried_soon_and_no_attempt_is_counted() -> None:
    gateway = Gateway(DOWN)
    forward = guarded(gateway, breakers_at_one_moment()).forward
    outcomes = [await forward(request(), NO_OPTIONS) for _ in range(500)]
    assert gateway.calls <= CircuitOptions().least_failures
    last = outcomes[-1]
    assert isinstance(last, Retry)
    assert (last.reason, last.counts_attempt, last.feedback) == (CIRCUIT_OPEN, False, None)
    assert 1.0 <= last.delay_seconds <= 3.0


async def test_the_circuit_of_one_gateway_does_not_affect_another() -> None:
    gateway = Gateway(DOWN)
    breakers = breakers_of()
    breaker = guarded(gateway, breakers)
    for _ in range(50):
        await breaker.forward(request(queue="down"), NO_OPTIONS)
    gateway.outcome = OK
    assert await breaker.forward(request(queue="well"), NO_OPTIONS) == OK
    assert breakers.of("down").circuit.state is CircuitState.OPEN


async def test_with_the_breaker_off_every_call_is_sent() -> None:
    gateway = Gateway(DOWN)
    forward = guarded(gateway, breakers_of(is_breaking=False, retry_share=0)).forward
    for _ in range(500):
        await forward(request(attempt=3), NO_OPTIONS)
    assert gateway.calls == 500


async def test_without_budget_a_retry_waits_and_a_first_attempt_is_sent() -> None:
    gateway = Gateway(BUSY)
    breaker = guarded(gateway, breakers_at_one_moment())
    outcomes = [await breaker.forward(request(attempt=1), NO_OPTIONS) for _ in range(200)]
    reasons = [outcome.reason for outcome in outcomes if isinstance(outcome, Retry)]
    assert reasons.count("rejected") == 100
    assert reasons[-1] == RETRY_BUDGET
    assert await breaker.forward(request(), NO_OPTIONS) == BUSY


@pytest.mark.parametrize("is_set_back", [False, True])
async def test_a_delivery_that_can_be_held_is_sent_when_the_gateway_is_back(is_set_back: bool) -> None:
    gateway, days = Gateway(DOWN), itertools.count()
    breaker = guarded(gateway, clock=lambda: time.time() - 86_400 * next(days) * is_set_back)
    for _ in range(20):
        await breaker.forward(request(), NO_OPTIONS)
    gateway.outcome = OK
    outcome = await breaker.forward(request(), AttemptOptions(60.0, 10.0))
    assert outcome == OK
    assert 0 < (gateway.limits[-1].seconds or 0) < 60.0, "the time spent waiting is not left for the attempt"


async def test_a_retry_that_does_not_fit_before_the_deadline_is_final() -> None:
    gateway = Gateway(DOWN)
    breaker = guarded(gateway, breakers_at_one_moment())
    for _ in range(20):
        await breaker.forward(request(), NO_OPTIONS)
    outcome = await breaker.forward(request(seconds=1.0), AttemptOptions(0.1, 10.0))
    assert isinstance(outcome, Answered)
    assert outcome.result.error_code == ErrorCode.DEADLINE_EXCEEDED


async def test_cancelled_calls_do_not_open_the_circuit() -> None:
    async def for_ever(_request: Request, _options: AttemptOptions) -> Outcome:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    breakers = breakers_of()
    forward = BreakerForward(for_ever, lambda queue: queue, breakers).forward
    works = [asyncio.create_task(one) for one in (forward(request(), NO_OPTIONS) for _ in range(500))]
    await asyncio.sleep(0)
    for work in works:
        work.cancel()
    await asyncio.gather(*works, return_exceptions=True)
    assert breakers.open_circuits() == 0


async def test_breakers_outlive_a_reload() -> None:
    before, after, breakers = Gateway(DOWN), Gateway(), breakers_at_one_moment()
    first = guarded(before, breakers)
    while breakers.open_circuits() == 0:
        await first.forward(request(), NO_OPTIONS)

    second = guarded(after, breakers)

    assert isinstance(await second.forward(request(), NO_OPTIONS), Retry)
    assert after.calls == 0, "no probe is due yet"
    assert isinstance(await second.forward(request(queue="another"), NO_OPTIONS), Answered)


async def test_a_request_that_always_fails_does_not_open_the_circuit_by_itself() -> None:
    gateway, breakers = Gateway(DOWN), breakers_of(retry_share=0)
    forward = guarded(gateway, breakers).forward
    for attempt in range(500):
        await forward(request(attempt, request_id="bad"), NO_OPTIONS)
    assert gateway.calls == 500
    assert breakers.open_circuits() == 0


async def test_pushes_that_fail_do_not_keep_one_that_succeeds_from_being_a_probe() -> None:
    """A hundred that always fail wait before it, but the newest one has every other turn."""

    class Choosy(Gateway):
        async def forward(self, request: Request, _limits: AttemptOptions) -> Outcome:
            self.calls += 1
            return OK if request.id == "good" else DOWN

    gateway = Choosy()
    forward = guarded(gateway).forward
    for _ in range(10):
        await forward(request(), NO_OPTIONS)
    before = gateway.calls
    bad = [asyncio.ensure_future(forward(request(), AttemptOptions(600.0, 10.0))) for _ in range(100)]
    await asyncio.sleep(0)

    outcome = await forward(request(request_id="good"), AttemptOptions(600.0, 10.0))

    assert outcome == OK
    assert gateway.calls - before <= 10
    for one in bad:
        one.cancel()
    await asyncio.gather(*bad, return_exceptions=True)
