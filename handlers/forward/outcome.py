"""Outcome of one attempt: a final result or a retry."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from handlers.contract.result import Result
from handlers.gates.gate import Feedback


class LastResponse(msgspec.Struct, frozen=True):
    """The last response of the gateway; the final result if the deadline passes before another one."""

    status_code: int
    body: bytes


class Answered(msgspec.Struct, frozen=True):
    """Final: a response of the gateway, or an error.

    `feedback` is the response as gates need it; None if the gateway was not called. `content_type` is the response's,
    or empty if unknown.
    """

    result: Result
    feedback: Feedback | None = None
    content_type: str = ""


class Retry(msgspec.Struct, frozen=True):
    """Not final: try again after `delay_seconds`.

    `reason` is one of a fixed set of words, for logs and metrics. `counts_attempt` is False if the request never
    reached the gateway (closed gate, handler still starting). `traceparent` is the span of this attempt, to which the
    next one links. `gateway_seconds` is the duration of the attempt, if details are on.
    """

    delay_seconds: float
    reason: str
    last: LastResponse | None = None
    counts_attempt: bool = True
    feedback: Feedback | None = None
    traceparent: str = ""
    gateway_seconds: float | None = None


Outcome: TypeAlias = Answered | Retry
