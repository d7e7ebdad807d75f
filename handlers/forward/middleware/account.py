"""Record attempts in metrics and logs, for the poller and the doors."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias

from handlers.contract.request import Request
from handlers.contract.result import ErrorCode, Result
from handlers.forward.forward import AttemptOptions, Forward
from handlers.forward.outcome import Answered, Outcome, Retry
from handlers.telemetry.logs import Logger
from handlers.telemetry.metrics import DoorMetrics, QueueMetrics


def account(
    request: Request,
    outcome: Outcome,
    *,
    now: float,
    seconds: float,
    log: Logger,
    metrics: QueueMetrics | None,
) -> None:
    """Count and log the outcome of one attempt.

    `seconds` is its duration, `now` is in Unix seconds. A success is logged at `debug`, since there may be thousands
    per second; everything else at `info`.
    """
    match outcome:
        case Answered(result):
            total_seconds = None if request.created is None else max(0.0, now - request.created)
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


QueueOf: TypeAlias = Callable[[str], QueueMetrics | None]
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

    async def counted(request: Request, options: AttemptOptions) -> Outcome:
        queue = queue_of(request.queue)
        door.started()
        if queue is not None:
            waited = None if request.created is None else max(0.0, clock() - request.created)
            queue.started(request.attempt, waited)
        try:
            return await forward(request, options)
        finally:
            door.ended()
            if queue is not None:
                queue.ended()

    return counted
