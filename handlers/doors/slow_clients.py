"""Limits on the form, time and size of one HTTP request.

uvicorn waits indefinitely for a request line, a header, or a client that does not read its response, and its parser
accepts headers and trailers of any size. So a few hundred slow connections could occupy the process. The time limit
runs from the start of a connection, or the first byte of a request, to the last byte of the request.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from handlers.doors.door import CONNECTION, CallerConnection
from handlers.telemetry.logs import RareWarning, get_logger

MAX_HEADER_BYTES: Final = 65_536
"""Limit on a request line with its headers; proxies forward less."""

_HOST: Final = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[\w.~%!$&'()*+;=-]*)(:\d{0,5})?")
"""A host with an optional port (RFC 9110, 7.2), without the comma of joined headers."""
_BODY_FRAMING: Final = (b"content-length", b"transfer-encoding")

_ANSWER_FIRST_SECONDS: Final = 2.0
"""Time in which the endpoint can answer 408 to a late body, before the connection is aborted."""


class TimelyProtocol(HttpToolsProtocol):
    """A connection on which each request must arrive within `receive_seconds`.

    A client that does not read its response for `read_seconds` is disconnected too. The time to handle a complete
    request is not limited; between requests, uvicorn's keep-alive limit applies.
    """

    def __init__(
        self, *args: Any, receive_seconds: float, read_seconds: float, invalid: RareWarning, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._receive_seconds = receive_seconds
        self._read_seconds = read_seconds
        self._log = get_logger("http")
        self._invalid = invalid
        self._is_receiving = True  # the first request is due from the start
        self._has_headers = self._is_refused = False
        self._header_bytes = 0
        self._bytes_since_body = 0
        self._client = CallerConnection(self._until_read)
        self._late: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Start the timer, since a client may send nothing at all."""
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        self._read()
        super().connection_lost(exc)
        self._client.lose()

    def data_received(self, data: bytes) -> None:
        """Parse bytes; stop the timer once a request is complete.

        A request that arrives in a single read needs no timer. Bytes between requests start it, since they stop
        uvicorn's keep-alive timer.
        """
        if self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        self._parse(data)
        is_idle = self.cycle is None or self.cycle.response_complete
        if not self._is_receiving and not is_idle:
            self._stop_watching()
            return
        if self._is_receiving:
            self._count(len(data))
        if self._late is None and not self.transport.is_closing():
            self._watch()

    def _parse(self, data: bytes) -> None:
        self._bytes_since_body += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self._refuse_invalid()
        except httptools.HttpParserUpgrade:
            if self.cycle is not None:
                self.cycle.keep_alive = False  # the parser reads nothing more, so this is the last request

    def _count(self, size: int) -> None:
        """Count bytes of an incomplete request; refuse headers, trailers or chunk extensions that are too large."""
        if self._has_headers:
            if self._bytes_since_body > MAX_HEADER_BYTES and not self.transport.is_closing():
                self._cut("trailers or chunk extensions too large")
            return
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES:
            self._refuse(b"431 Request Header Fields Too Large")

    def on_message_begin(self) -> None:
        """Start the timer at the first byte of a request."""
        self._is_receiving, self._has_headers, self._header_bytes = True, False, 0
        self._client.has_whole_request = False
        super().on_message_begin()
        self._bytes_since_body = 0
        self.scope[CONNECTION] = self._client  # type: ignore[typeddict-unknown-key]  # a key of our own

    def on_headers_complete(self) -> None:
        """Called when the headers are complete; the endpoint limits the body.

        The parser treats bytes after an `Upgrade` as another protocol, so a body would be read as the next request.
        Therefore a request with both is refused.
        """
        self._has_headers = True
        if self._is_odd():
            self._refuse_invalid()
            return
        super().on_headers_complete()

    def _is_odd(self) -> bool:
        """Whether a proxy in front may have parsed the request differently.

        The only valid transfer coding is `chunked`, not in HTTP/1.0, and a valid `Host` must occur once (RFC 9112, 3.2,
        6.1). A target has no fragment.
        """
        names = [name for name, _ in self.headers]
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1") or b"#" in self.url:
            return True
        is_old = version == "1.0"
        codings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
        if codings and (is_old or codings != [b"chunked"]):
            return True
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) > 1 or not (hosts or is_old) or not all(map(_HOST.fullmatch, hosts)):
            return True
        return bool(self.parser.should_upgrade()) and any(name in _BODY_FRAMING for name in names)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header; drop trailers (RFC 9110, 6.5.1).

        uvicorn appends any number of trailers to the headers. They could fill the memory and bypass a proxy's checks.
        """
        if not self._has_headers:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """Pass a piece of the body to the endpoint, which limits it."""
        self._bytes_since_body = 0
        if not self._is_refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Stop the timer at the last byte of a request."""
        self._is_receiving = False
        self._client.has_whole_request = True
        if not self._is_refused:
            super().on_message_complete()

    def pause_writing(self) -> None:
        """Start the timer for a client that does not read its answer."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(self._read_seconds, self._cut, "answer not read")

    def resume_writing(self) -> None:
        self._read()
        super().resume_writing()

    def _read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    async def _until_read(self) -> None:
        await self.flow.drain()

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
            self._watch()  # reading is paused on our side: a previous request is in progress, or the body is large
        elif self._is_receiving and self._has_headers:
            self._late = self.loop.call_later(_ANSWER_FIRST_SECONDS, self._cut, "body late")
        else:
            self._refuse(b"408 Request Timeout")

    def _refuse_invalid(self) -> None:
        self._is_refused = True
        self._invalid.report()
        self._refuse(b"400 Bad Request")

    def _refuse(self, status: bytes) -> None:
        self._log.debug("connection refused", status=status.decode())
        self._stop_watching()
        if not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 " + status + b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            self.transport.close()

    def _cut(self, why: str) -> None:
        self._log.debug("connection aborted", reason=why)
        self.transport.abort()


def timely_protocol(receive_seconds: float, read_seconds: float) -> Callable[..., Any]:
    """The protocol factory for uvicorn, which passes its own arguments by name."""
    invalid = RareWarning(get_logger("http"), "invalid HTTP request refused")
    return partial(TimelyProtocol, receive_seconds=receive_seconds, read_seconds=read_seconds, invalid=invalid)
