"""How long and how large the receipt of one HTTP request may be.

uvicorn alone waits for ever for a request line, a header or an answer that nobody reads, and its fast
parser takes headers of any size; a few hundred connections that say a byte now and then would fill the
process. So would trailers without an end. The clock runs from a connection's first second, or a request's
first byte, to its last byte.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from handlers.doors.door import CONNECTION, Connection
from handlers.telemetry.logs import Logger, get_logger

MAX_HEADER_BYTES: Final = 65_536
"""A request line and its headers; more than any proxy in front of us lets through."""

_BODY_FRAMING: Final = (b"content-length", b"transfer-encoding")

_ANSWER_FIRST_SECONDS: Final = 2.0
"""Where a body is late, the endpoint says so (408) before the connection is cut."""


class TimelyProtocol(HttpToolsProtocol):
    """One connection whose requests arrive in `receive_seconds`, or it is cut.

    A request that has arrived whole may take as long as it needs; between requests uvicorn's own
    keep-alive limit holds. An answer that is not read for `receive_seconds` cuts the connection too.
    """

    def __init__(self, *args: Any, receive_seconds: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._receive_seconds = receive_seconds
        self._log: Logger = get_logger("http")
        self._is_receiving = True  # the first request is waited for from the start
        self._has_headers = self._is_refused = False
        self._header_bytes = 0
        self._bytes_since_body = 0
        self._client = Connection()
        self._late: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """The clock starts: a connection that says nothing is late as well."""
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._stop_watching()
        self._read()
        super().connection_lost(exc)
        self._client.lose()

    def data_received(self, data: bytes) -> None:
        """Parse; the clock stops once a request is whole. Whole requests in one read set no timer."""
        self._bytes_since_body += len(data)
        super().data_received(data)
        if not self._is_receiving:
            self._stop_watching()
            return
        if self._has_headers:
            if self._bytes_since_body > MAX_HEADER_BYTES and not self.transport.is_closing():
                self._cut("trailers or chunk extensions too large")
                return
        else:
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES:
                self._refuse(b"431 Request Header Fields Too Large")
                return
        if self._late is None:
            self._watch()

    def on_message_begin(self) -> None:
        """A request's first byte."""
        self._is_receiving, self._has_headers, self._header_bytes = True, False, 0
        self._client.has_whole_request = False
        super().on_message_begin()
        self._bytes_since_body = 0
        self.scope[CONNECTION] = self._client  # type: ignore[typeddict-unknown-key]  # beside what ASGI defines

    def on_headers_complete(self) -> None:
        """From here the endpoint has a say in size and time.

        The parser takes what follows an `Upgrade` for the other protocol and never for a body, so that a body would be
        read as the connection's next request: whoever sends both is refused.
        """
        self._has_headers = True
        if self._is_odd():
            self._is_refused = True
            self._refuse(b"400 Bad Request")
            return
        super().on_headers_complete()

    def _is_odd(self) -> bool:
        """Whether a proxy in front may have read the request in another way than our parser.

        `chunked` is the only transfer coding, and not in HTTP/1.0; `Host` stands there once (RFC 9112, 3.2, 6.1).
        """
        names = [name for name, _ in self.headers]
        is_old = self.parser.get_http_version() == "1.0"
        codings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
        if codings and (is_old or codings != [b"chunked"]):
            return True
        hosts = names.count(b"host")
        if hosts > 1 or (hosts == 0 and not is_old):
            return True
        return bool(self.parser.should_upgrade()) and any(name in _BODY_FRAMING for name in names)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; what comes after the body is a trailer, and no header (RFC 9110, 6.5.1): dropped.

        uvicorn adds trailers to the headers, unbounded: they would fill the memory, and a proxy that checks headers
        alone would let a stranger's pass.
        """
        if not self._has_headers:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """A piece of the body, which the endpoint bounds; what frames it is bounded here."""
        self._bytes_since_body = 0
        if not self._is_refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """A request's last byte."""
        self._is_receiving = False
        self._client.has_whole_request = True
        if not self._is_refused:
            super().on_message_complete()

    def pause_writing(self) -> None:
        """The client does not read its answer."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(self._receive_seconds, self._cut, "answer not read")

    def resume_writing(self) -> None:
        """It reads again."""
        self._read()
        super().resume_writing()

    def _read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _watch(self) -> None:
        self._late = self.loop.call_later(self._receive_seconds, self._on_late)

    def _stop_watching(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _on_late(self) -> None:
        self._late = None
        if self.transport.is_closing():
            return
        if self.flow.read_paused:
            self._watch()  # it is us who do not read: another request is being served, or its body is large
        elif self._has_headers:
            self._late = self.loop.call_later(_ANSWER_FIRST_SECONDS, self._cut, "body late")
        else:
            self._refuse(b"408 Request Timeout")

    def _refuse(self, status: bytes) -> None:
        self._log.debug("connection refused", status=status.decode())
        self._stop_watching()
        if not self.transport.is_closing():
            self.transport.write(
                b"HTTP/1.1 " + status + b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            )
            self.transport.close()

    def _cut(self, why: str) -> None:
        self._log.debug("connection cut", reason=why)
        self.transport.abort()


def timely_protocol(receive_seconds: float) -> Callable[..., Any]:
    """What uvicorn makes a connection's protocol with; it passes its own arguments by name."""
    return partial(TimelyProtocol, receive_seconds=receive_seconds)
