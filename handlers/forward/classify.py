"""What came back, judged: a status or an exception in, a word out. One table each.

| what the gateway did | verdict |
|---|---|
| 2xx, 3xx (never followed), 4xx but those below | final |
| 408, 425, 429, 5xx | retry |
| no connection, reset, DNS, TLS, a broken or truncated body, too slow | retry |

The transport reports a server's disconnect as a connect timeout, so the exceptions of the library
below it (aiohttp) are what we look at, the most special class first.
"""

from __future__ import annotations

import ssl
from typing import Final

import aiohttp
import httpx

RETRY_STATUSES: Final = frozenset({408, 425, 429})

STATUS_REASONS: Final = {
    408: "timeout",
    425: "too_early",
    429: "rejected",
    503: "unavailable",
    504: "timeout",
}

FAILURE_REASONS: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (aiohttp.ConnectionTimeoutError, "connect"),  # nobody answered the handshake: nothing was sent
    (TimeoutError, "timeout"),
    (aiohttp.ClientConnectorDNSError, "dns"),
    (aiohttp.ClientSSLError, "tls"),
    (ssl.SSLError, "tls"),
    (aiohttp.ClientConnectorError, "connect"),
    (aiohttp.ServerDisconnectedError, "reset"),
    (aiohttp.ClientConnectionError, "reset"),
    (aiohttp.ClientPayloadError, "broken_body"),
    (aiohttp.ClientResponseError, "broken_response"),
    (aiohttp.ClientError, "connect"),
    (httpx.TimeoutException, "timeout"),
    (httpx.ConnectError, "connect"),
    (httpx.NetworkError, "reset"),
    (httpx.RemoteProtocolError, "broken_response"),
    (httpx.DecodingError, "broken_body"),
    (httpx.TransportError, "connect"),
    (OSError, "connect"),
    (ValueError, "broken_response"),  # aiohttp on a header or a chunk size that is no number
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
    for told in (error.__cause__ if isinstance(error, httpx.HTTPError) else None, error):
        for kind, reason in FAILURE_REASONS:
            if isinstance(told, kind):
                return reason
    return "broken_response"
