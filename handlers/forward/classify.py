"""Classify responses and failures: final, or retried for a reason.

| response | outcome |
|---|---|
| 2xx, 3xx (never followed), all other 4xx | final |
| 408, 425, 429, 5xx | retry |
| no connection, reset, DNS, TLS, a broken or truncated body, too slow | retry |
| complete but unusable: too large, undecodable | final (`UnusableResponse`) |
"""

from __future__ import annotations

from typing import Final

import httpx

from handlers.transport.failures import NameNotResolved, TlsFailed, TruncatedBody

RETRY_STATUSES: Final = frozenset({408, 425, 429})

STATUS_REASONS: Final = {
    408: "timeout",
    425: "too_early",
    429: "rejected",
    503: "unavailable",
    504: "timeout",
}

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
