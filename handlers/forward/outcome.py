"""Outcome of one attempt: a final result or a retry, and what decides it.

| response | outcome |
|---|---|
| 2xx, 3xx (never followed), all other 4xx | final |
| 408, 425, 429, 5xx | retry |
| no connection, reset, DNS, TLS, a broken or truncated body, too slow | retry |
| complete but unusable: too large, undecodable | final (`UnusableResponse`) |
"""

from __future__ import annotations

from typing import Final, TypeAlias

import httpx
import msgspec

from handlers.byte_budget import SMALL_BYTES
from handlers.contract.result import Result, answered_result, encoded_payload_bytes
from handlers.gates.gate import Feedback
from handlers.transport.failures import NameNotResolved, TlsFailed, TruncatedBody


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
    """Maximum bytes that an outcome's result takes as JSON.

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


RETRY_STATUSES: Final = frozenset({408, 425, 429})

STATUS_REASONS: Final = {408: "timeout", 425: "too_early", 429: "rejected", 503: "unavailable", 504: "timeout"}

FAILURE_REASONS: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (httpx.ConnectTimeout, "connect"),  # no TCP connection: nothing was sent
    (TimeoutError, "timeout"),
    (httpx.TimeoutException, "timeout"),
    (NameNotResolved, "dns"),
    (TlsFailed, "tls"),
    (httpx.ConnectError, "connect"),
    (httpx.NetworkError, "reset"),
    (TruncatedBody, "broken_body"),
    (httpx.RemoteProtocolError, "broken_response"),
    (httpx.TransportError, "connect"),
    (OSError, "connect"),
)

FAILURES: Final = tuple({kind for kind, _ in FAILURE_REASONS})
"""All exceptions that an attempt may raise; any other is a defect and is not caught."""

OWN_FAULTS: Final = (httpx.LocalProtocolError, httpx.UnsupportedProtocol, httpx.InvalidURL, UnicodeError)
"""Exceptions of a request that cannot be written: nothing was sent, and a retry would fail again.

Catch these before `FAILURES`, which includes some of them.
"""


def is_final(status_code: int) -> bool:
    """Whether a response with this status is final."""
    return status_code < 500 and status_code not in RETRY_STATUSES


def status_reason(status_code: int) -> str:
    """The reason for retrying after this status."""
    return STATUS_REASONS.get(status_code, "server_error")


def failure_reason(error: BaseException) -> str:
    """The reason for retrying after an attempt without a response."""
    return next((reason for kind, reason in FAILURE_REASONS if isinstance(error, kind)), "broken_response")
