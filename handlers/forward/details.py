"""What a result may say beside the answer, for consumers that want it: attempts, durations, tokens, metadata.

Off by default, where results are what the reference writes.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import ParamSpec

import msgspec

from handlers.contract.request import Request
from handlers.contract.result import Result, Usage
from handlers.forward.forward import Forward, Limits
from handlers.forward.outcome import Answered, Outcome
from handlers.telemetry.token_usage import token_usage

Parameters = ParamSpec("Parameters")


def timed(
    attempt: Callable[Parameters, Awaitable[Outcome]], monotonic: Callable[[], float] = time.monotonic
) -> Callable[Parameters, Awaitable[Outcome]]:
    """`attempt`, with the seconds it took noted in what the gateway answered."""

    async def timed_attempt(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Outcome:
        began_at = monotonic()
        outcome = await attempt(*args, **kwargs)
        if not isinstance(outcome, Answered) or not outcome.result.status_code:
            return outcome
        seconds = round(monotonic() - began_at, 3)
        return msgspec.structs.replace(
            outcome, result=msgspec.structs.replace(outcome.result, gateway_seconds=seconds)
        )

    return timed_attempt


def explained(forward: Forward, clock: Callable[[], float] = time.time) -> Forward:
    """`forward`, with all that is known in its final results; `clock` gives Unix seconds."""

    async def explained_forward(request: Request, limits: Limits) -> Outcome:
        outcome = await forward(request, limits)
        if not isinstance(outcome, Answered):
            return outcome
        result = detailed(outcome.result, request, clock())
        return msgspec.structs.replace(outcome, result=result)

    return explained_forward


def detailed(result: Result, request: Request, now: float) -> Result:
    """The final result of `request` with all that is known of it; `now` is in Unix seconds.

    A result of an attempt that was `timed` counts that attempt.
    """
    took, created = result.gateway_seconds, request.created
    usage = token_usage(result.payload) if 200 <= result.status_code < 300 else None
    return msgspec.structs.replace(
        result,
        attempts=request.attempt + (0 if took is None else 1),
        queue_seconds=None if created is None else max(0.0, round(now - (took or 0.0) - created, 3)),
        finished_at=round(now, 3),
        usage=None if usage is None else Usage(*usage),
        metadata=request.metadata,
    )
