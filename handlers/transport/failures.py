"""Exceptions of the transport, which also raises httpx's own."""

from __future__ import annotations

import httpx


class NameNotResolved(httpx.ConnectError):
    """The host has no address."""


class TlsFailed(httpx.ConnectError):
    """The TLS handshake failed; nothing was sent."""


class ConnectionLost(httpx.ReadError):
    """The connection ended before the response was complete.

    `may_resend` is True if the server cannot have processed the request.
    """

    def __init__(self, message: str, *, may_resend: bool = False) -> None:
        super().__init__(message)
        self.may_resend = may_resend


class TruncatedBody(httpx.RemoteProtocolError):
    """The body ended too early, or does not match its framing."""


class UnusableResponse(Exception):
    """The response is unusable, and a retry would give the same.

    The text completes a sentence about the response ("is over the size limit").
    """

    def __init__(self, found: str, status_code: int = 0) -> None:
        super().__init__(found)
        self.status_code = status_code


class ResponseTooLarge(UnusableResponse):
    """The response exceeds a size limit; the rest was not read."""

    def __init__(self, found: str = "is over the size limit", status_code: int = 0) -> None:
        super().__init__(found, status_code)
