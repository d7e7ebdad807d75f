"""Outcome of one attempt: a final result or a retry."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from handlers.byte_budget import SMALL_BYTES
from handlers.contract.result import Result, answered_result, encoded_payload_bytes
from handlers.gates.gate import Feedback


class LastResponse(msgspec.Struct, frozen=True):
    """The gateway's last response. It becomes the result if the deadline passes."""

    status_code: int
    body: bytes


class Answered(msgspec.Struct, frozen=True):
    """A final result: a response of the gateway, or an error.

    `feedback` is the part of the response that gates need; None if the gateway was not called. `content_type` is the
    response's, or empty if unknown.
    """

    result: Result
    feedback: Feedback | None = None
    content_type: str = ""


class Retry(msgspec.Struct, frozen=True):
    """No final result yet: try again after `delay_seconds`.

    `reason` is one of a fixed set of words, for logs and metrics. `counts_attempt` is False if the request never
    reached the gateway (closed gate, handler still starting). `traceparent` is this attempt's span, which the next
    attempt's span links to. `gateway_seconds` is the duration of the attempt, set only if results have details.
    """

    delay_seconds: float
    reason: str
    last: LastResponse | None = None
    counts_attempt: bool = True
    feedback: Feedback | None = None
    traceparent: str = ""
    gateway_seconds: float | None = None


Outcome: TypeAlias = Answered | Retry


def result_bytes(outcome: Outcome, offload_bytes: int = 0) -> int:
    """Most bytes that an outcome's result takes as JSON.

    The last response of a retry may become the result, so it counts if it is large. A payload of at least
    `offload_bytes` (0: none) is offloaded, so it counts without JSON escapes.
    """
    if isinstance(outcome, Answered):
        result = outcome.result
    elif outcome.last is not None and len(outcome.last.body) > SMALL_BYTES:
        result = answered_result("", "", outcome.last.status_code, outcome.last.body)
    else:
        return 0
    if len(result.payload) <= SMALL_BYTES:
        return len(result.payload)
    if offload_bytes and len(result.payload) >= offload_bytes:
        return len(result.payload.encode())
    return encoded_payload_bytes(result)
