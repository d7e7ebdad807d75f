"""Exceptions of the transport: httpx's own or subclasses of them."""

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
    """The connection ended inside the body, or the body does not follow its framing."""


class UnusableResponse(Exception):
    """The response is complete but unusable; a retry would give the same.

    The text is a predicate ("is over the size limit"). `status_code` is the response's.
    """

    def __init__(self, found: str, status_code: int = 0) -> None:
        super().__init__(found)
        self.status_code = status_code


class ResponseTooLarge(UnusableResponse):
    """The response passed a size limit; reading stopped there."""

    def __init__(self, found: str = "is over the size limit", status_code: int = 0) -> None:
        super().__init__(found, status_code)
