"""Record attempts: in metrics and logs, and as details of results."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from handlers.contract.request import Request
from handlers.contract.result import ErrorCode, Result, token_usage
from handlers.forward.forward import AttemptOptions, Forward
from handlers.forward.outcome import Answered, Outcome, Retry
from handlers.telemetry.logs import Logger

if TYPE_CHECKING:
    # Imports prometheus_client, which a door without METRICS_TOKEN does not need.
    from handlers.telemetry.metrics import DoorMetrics, QueueMetrics


def account(
    request: Request, outcome: Outcome, *, now: float, seconds: float, log: Logger, metrics: QueueMetrics | None
) -> None:
    """Count and log the outcome of one attempt.

    `seconds` is its duration, `now` is in Unix seconds. A success is logged at `debug`, since there may be thousands
    per second; everything else at `info`.
    """
    match outcome:
        case Answered(result):
            total_seconds = _age_seconds(request, now)
            if metrics is not None:
                _count(metrics, request, result, total_seconds, now)
            _log_answer(log, request, result, seconds, total_seconds)
        case Retry():
            if metrics is not None:
                metrics.retried(outcome.reason)
            log.info(
                "retry",
                id=request.id,
                queue=request.queue,
                attempt=request.attempt + 1,
                outcome="retry",
                reason=outcome.reason,
                status=outcome.last.status_code if outcome.last else 0,
                seconds=round(seconds, 3),
                delay_seconds=round(outcome.delay_seconds, 3),
            )


def _count(metrics: QueueMetrics, request: Request, result: Result, total_seconds: float | None, now: float) -> None:
    metrics.answered(result.status_code, result.error_code, request.attempt)
    metrics.timed(total_seconds, request.deadline - now)
    if _is_success(result):
        metrics.used(result.payload)


def _log_answer(log: Logger, request: Request, result: Result, seconds: float, total_seconds: float | None) -> None:
    if _is_success(result) and not log.is_debugging:
        return  # building the fields would cost more than the metrics
    level = log.debug if _is_success(result) else log.info
    level(
        "answered",
        id=request.id,
        queue=request.queue,
        attempt=request.attempt + 1,
        outcome=_word(result),
        status=result.status_code,
        reason=result.error_code,
        seconds=round(seconds, 3),
        total_seconds=total_seconds and round(total_seconds, 3),
    )


def _is_success(result: Result) -> bool:
    return 200 <= result.status_code < 300


def _word(result: Result) -> str:
    """The outcome as metrics name it."""
    if _is_success(result):
        return "success"
    return "expired" if result.error_code == ErrorCode.DEADLINE_EXCEEDED else "failed"


QueueOf: TypeAlias = "Callable[[str], QueueMetrics | None]"
"""Returns the metrics of a queue or subscription; None if another process counts it."""


def counted_calls(forward: Forward, queue_of: QueueOf) -> Forward:
    """The layer that counts calls to the gateway, without waits at gates."""

    async def counted(request: Request, options: AttemptOptions) -> Outcome:
        queue = queue_of(request.queue)
        if queue is None:
            return await forward(request, options)
        began_at = queue.sending()
        try:
            return await forward(request, options)
        finally:
            queue.sent(began_at)

    return counted


def counted_attempts(
    forward: Forward, queue_of: QueueOf, door: DoorMetrics, clock: Callable[[], float] = time.time
) -> Forward:
    """The layer that counts attempts, including waits at gates. `clock` returns Unix seconds."""

    def counted(request: Request, options: AttemptOptions) -> Awaitable[Outcome]:
        return counted_attempt(forward(request, options), request, clock(), queue_of(request.queue), door)

    return counted


async def counted_attempt(
    attempt: Awaitable[Outcome],
    request: Request,
    now: float,
    queue: QueueMetrics | None,
    door: DoorMetrics | None = None,
) -> Outcome:
    """Make an attempt, and count its start and end. `now` is in Unix seconds."""
    if door is not None:
        door.started()
    if queue is not None:
        queue.started(request.attempt, _age_seconds(request, now))
    try:
        return await attempt
    finally:
        if door is not None:
            door.ended()
        if queue is not None:
            queue.ended()


def _age_seconds(request: Request, now: float) -> float | None:
    return None if request.created is None else max(0.0, now - request.created)


def timed(forward: Forward, monotonic: Callable[[], float] = time.monotonic) -> Forward:
    """The layer that adds the duration of a gateway call."""

    async def timed_forward(request: Request, options: AttemptOptions) -> Outcome:
        began_at = monotonic()
        outcome = await forward(request, options)
        seconds = monotonic() - began_at
        match outcome:
            case Answered(result, feedback):
                if feedback is None and not _was_asked_for(result):
                    return outcome
                return lasted(outcome, seconds)
            case Retry(feedback=feedback):
                if feedback is None:
                    return outcome
                return msgspec.structs.replace(outcome, gateway_seconds=round(seconds, 3))

    return timed_forward


def lasted(outcome: Answered, seconds: float) -> Answered:
    """The outcome with the duration of its attempt in seconds."""
    result = msgspec.structs.replace(outcome.result, gateway_seconds=round(seconds, 3))
    return msgspec.structs.replace(outcome, result=result)


def _was_asked_for(result: Result) -> bool:
    """Whether the gateway was called for this result."""
    is_answered = result.status_code or result.error_code == ErrorCode.INFERENCE_ERROR
    return bool(is_answered) or result.gateway_seconds is not None


def with_details(forward: Forward, clock: Callable[[], float] = time.time) -> Forward:
    """The layer that adds all details to final results. `clock` returns Unix seconds."""

    async def explained_forward(request: Request, options: AttemptOptions) -> Outcome:
        outcome = await forward(request, options)
        if not isinstance(outcome, Answered):
            return outcome
        result = detailed(outcome.result, request, clock())
        return msgspec.structs.replace(outcome, result=result)

    return explained_forward


def detailed(result: Result, request: Request | None, now: float) -> Result:
    """The final result of `request` with all details. `now` is in Unix seconds.

    A result with a `gateway_seconds` counts as one more attempt. If `request` is None (it could not be decoded), only
    `finished_at` is added.
    """
    finished_at = round(now, 3)
    if request is None:
        return msgspec.structs.replace(result, finished_at=finished_at)
    took, created = result.gateway_seconds, request.created
    return msgspec.structs.replace(
        result,
        attempts=request.attempt + (0 if took is None else 1),
        queue_seconds=None if created is None else max(0.0, round(now - (took or 0.0) - created, 3)),
        finished_at=finished_at,
        usage=token_usage(result.payload) if 200 <= result.status_code < 300 else None,
        metadata=request.metadata,
    )
