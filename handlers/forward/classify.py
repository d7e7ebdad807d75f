"""What came back, judged: a status or an exception in, a word out. One table each.

| what the gateway did | verdict |
|---|---|
| 2xx, 3xx (never followed), 4xx but those below | final |
| 408, 425, 429, 5xx | retry |
| no connection, reset, DNS, TLS, a broken or truncated body, too slow | retry |
| complete, but unusable: too large, not decodable | final; an `UnusableResponse`, none of the failures here |
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
    (httpx.ConnectTimeout, "connect"),  # nobody answered the handshake: nothing was sent
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
"""Every exception that an attempt may end with; anything else is a defect of ours and is not caught."""


OWN_FAULTS: Final = (httpx.LocalProtocolError, httpx.UnsupportedProtocol, httpx.InvalidURL, UnicodeError)
"""Exceptions of a call that could not even be written: nothing was sent, and trying again would not help.

Catch them before `FAILURES`, which some of them belong to.
"""


def is_final(status_code: int) -> bool:
    """Whether an answer with this status ends the request."""
    return status_code < 500 and status_code not in RETRY_STATUSES


def status_reason(status_code: int) -> str:
    """The word for a status that is retried."""
    return STATUS_REASONS.get(status_code, "server_error")


def failure_reason(error: BaseException) -> str:
    """The word for an attempt that ended without an answer."""
    return next((reason for kind, reason in FAILURE_REASONS if isinstance(error, kind)), "broken_response")
