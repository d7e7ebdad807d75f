"""Exceptions of the transport, which also raises httpx's own."""

from __future__ import annotations

import errno
import os
from typing import Final

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


_REFUSED: Final = (os.strerror(errno.ECONNREFUSED), f"[Errno {errno.ECONNREFUSED}]")
"""Texts of a refused connection, at one address and at several."""


def connection_failure(error: BaseException) -> str:
    """Why a server could not be reached, in words; completes a sentence about its address."""
    if isinstance(error, NameNotResolved):
        return "has a host name that does not resolve"
    if isinstance(error, TlsFailed):
        return f"failed the TLS handshake: {error}"
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return "did not answer in time"
    if isinstance(error, httpx.ConnectError) and any(sign in str(error) for sign in _REFUSED):
        return "refused the connection"
    return f"could not be read: {error or type(error).__name__}"
