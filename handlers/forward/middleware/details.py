"""Add details to results: attempts, durations, tokens and metadata."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import ParamSpec

import msgspec

from handlers.contract.request import Request
from handlers.contract.result import ErrorCode, Result, token_usage
from handlers.forward.forward import AttemptOptions, Forward
from handlers.forward.outcome import Answered, Outcome, Retry

Parameters = ParamSpec("Parameters")


def timed(
    attempt: Callable[Parameters, Awaitable[Outcome]], monotonic: Callable[[], float] = time.monotonic
) -> Callable[Parameters, Awaitable[Outcome]]:
    """The layer that adds the duration of a gateway call."""

    async def timed_attempt(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Outcome:
        began_at = monotonic()
        outcome = await attempt(*args, **kwargs)
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

    return timed_attempt


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
