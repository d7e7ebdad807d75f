"""One HTTP connection, which has one exchange at a time.

To save CPU time, no request has a task or timeout object of its own: the caller waits for a future, and each connection
has one timer for all its exchanges. The parser is that of httptools, as in uvicorn.
"""

from __future__ import annotations

import asyncio
import math
import re
import select
import socket
import ssl
import struct
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

import httptools
import httpx
import msgspec

from handlers.number_text import whole
from handlers.transport.failures import ConnectionLost, ResponseTooLarge, TruncatedBody, UnusableResponse

MAX_RESPONSE_HEADER_BYTES: Final = 262_144
MAX_RESPONSE_HEADERS: Final = 1_000
_PIECE_BYTES: Final = 262_144
_JOINED_BYTES: Final = 65_536
"""A request with a body up to this size is written in one call; a larger body follows in pieces, without a copy."""

_BYTES_ACKED: Final = 120  # offset in Linux's `struct tcp_info`
_MOST_PARTS: Final = 1_024
"""Parts of a body are joined once there are this many."""

_KEEP_ALIVE_TIMEOUT: Final = re.compile(rb"\btimeout\s*=\s*(\d{1,6})", re.IGNORECASE)
_BREAKS_AS_SPACES: Final = bytes.maketrans(b"\r\n\0", b"   ")
"""Replaces line breaks in header values, as RFC 9110, 5.5 requires; the parser accepts them in folded lines."""
_NO_BODY: Final = frozenset({204, 304})
_END: Final = b"\r\n\r\n"
_INTERIM: Final = re.compile(rb"[\r\n]*HTTP/1\.[01] 1\d\d")
_SWITCHING: Final = 101

FREE_BYTES: Final = 65_536
"""Bytes of a response that are read before room is requested; most responses are smaller."""

AskForRoom = Callable[[int, Callable[[], None]], bool]
"""Requests room for a response of at most this size. True: there is room now. False: the callback is called later."""

Header = tuple[bytes, bytes]


class Response(NamedTuple):
    """A complete response. Header names are in lower case."""

    status_code: int
    headers: list[Header]
    body: bytes


class Outgoing(msgspec.Struct, frozen=True):
    """A request to send; `head` is its request line and headers.

    At `until` (event loop's clock) the connection is closed, and nothing more is written. `ask_for_room` is called
    before a large response is read. `may_repeat`: the request may be sent twice. `wants_head`: only the response's
    headers are awaited.
    """

    head: bytes
    body: bytes
    until: float = math.inf
    ask_for_room: AskForRoom | None = None
    may_repeat: bool = False
    wants_head: bool = False


_NOTHING: Final = Outgoing(b"", b"")


class Connection(asyncio.Protocol):
    """A connection; `Dialer.connect` makes it.

    `on_idle` is called after each exchange, `on_lost` when the connection ends. `limit` is the most bytes of a body.
    Times are seconds of the event loop's clock.
    """

    def __init__(
        self,
        sock: socket.socket,
        limit: int,
        on_idle: Callable[[Connection], None],
        on_lost: Callable[[Connection], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._limit, self._limit_digits = limit, len(str(limit))
        self._on_idle = on_idle
        self._on_lost = on_lost
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # set before anything else is called
        self._parser = self._new_parser()
        self._poll = select.poll()
        self._poll.register(sock.fileno(), select.POLLIN)
        self._waiter: asyncio.Future[Response] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = self._until = math.inf
        self._paused_at = 0.0
        self.is_open = self._is_tls = self._is_paused = self._has_no_room = False
        self._request = _NOTHING
        self._ask_for_room: AskForRoom | None = None
        self._unsent: memoryview | None = None
        self._sent_bytes = self._sent_before = 0
        self._has_first_byte = False
        self.idle_until = 0.0
        self.keep_alive_seconds = math.inf
        self.uses = 0
        self._begin()

    def _new_parser(self) -> httptools.HttpResponseParser:
        parser = httptools.HttpResponseParser(self)
        # Allowed: a content-length with chunks, which is ignored (RFC 9112, 6.3); folded header lines (5.2); bytes
        # after the last response, which this class checks.
        parser.set_dangerous_leniencies(
            lenient_headers=True, lenient_chunked_length=True, lenient_data_after_close=True
        )
        return parser

    def _begin(self) -> None:
        self._status_code = 0
        self._head: list[bytes] = []
        self._headers: list[Header] = []
        self._parts: list[bytes] = []
        self._size = self._unframed = self._joined_parts = 0
        self._has_headers = self._ends_with_connection = self._is_reusable = self._is_complete = False
        self._is_ambiguous = False

    # --- what the pool calls

    def is_usable(self) -> bool:
        """Whether the connection is open and has nothing to read.

        If it has, that is a FIN or unsolicited bytes.
        """
        return self.is_open and not self._transport.is_closing() and not self._poll.poll(0)

    async def exchange(self, request: Outgoing) -> Response:
        """Send one request and return its response.

        If the caller is cancelled, the connection is closed at once. Raises `TimeoutError`, `UnusableResponse`, or one
        of httpx's transport errors.
        """
        waiter = self._start(request)
        try:
            return await waiter
        except asyncio.CancelledError:
            # Otherwise the response has arrived, and the connection may already serve another request.
            if self._waiter is waiter:
                self.abort()
            raise
        finally:
            del waiter  # it holds the exception, whose traceback holds this frame and the request: a cycle

    def _start(self, request: Outgoing) -> asyncio.Future[Response]:
        waiter = self._waiter = self._loop.create_future()
        if self.uses:
            self._begin()
        self.uses += 1
        self._request = request
        head, body, until = request.head, request.body, request.until
        self._ask_for_room, self._has_no_room = request.ask_for_room, False
        self._until = until
        self._has_first_byte = False
        self._watch_time()
        self._sent_before = self._acknowledged() if self._is_tls else self._sent_bytes
        if not self.is_open:
            self._fail(ConnectionLost("the connection was closed before the request", may_resend=True))
        elif self._loop.time() >= until:
            self._fail(TimeoutError("the request timed out"))
        elif len(body) <= _JOINED_BYTES:
            self._write(head + body)
        else:
            self._unsent = memoryview(body)
            self._write(head)
            self._write_on()
        return waiter

    def abort(self) -> None:
        """Close at once, also during an exchange."""
        self._is_reusable = False
        self._unsent = None
        if self.is_open:
            self._transport.abort()

    # --- writing

    def _write(self, data: bytes | memoryview) -> None:
        self._sent_bytes += len(data)
        self._transport.write(data)

    def _write_on(self) -> None:
        """Write pieces until the socket is full or the time is over."""
        while self._unsent is not None and not self._is_paused:
            if self._loop.time() >= self._request.until:
                self._fail(TimeoutError("the request timed out"))
                return
            piece, rest = self._unsent[:_PIECE_BYTES], self._unsent[_PIECE_BYTES:]
            self._unsent = rest if rest else None
            self._write(piece)

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        if self._unsent is not None:
            self._write_on()

    # --- events of the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called when the connection is open and its TLS handshake complete."""
        self._transport = transport  # type: ignore[assignment]  # a transport of a stream, as every one of TCP
        self._is_tls = transport.get_extra_info("ssl_object") is not None
        self.is_open = True
        self._transport.set_write_buffer_limits(high=0)  # asyncio buffers nothing, so `_write_on` can stop in time

    def data_received(self, data: bytes) -> None:
        """Parse bytes of the response; unsolicited bytes close the connection."""
        if self._waiter is None:
            self.abort()
            return
        self._has_first_byte = True
        self._unframed += len(data)
        if not self._has_headers:
            self._head.append(data)
        self._parse(data)
        if self._is_complete or (self._request.wants_head and self._has_headers):
            if not self._has_no_room:
                self._finish()
        elif self._unframed > MAX_RESPONSE_HEADER_BYTES:
            self._fail(self._too_much())

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._on_parser_error(error)
        except httptools.HttpParserUpgrade:
            self._fail(httpx.RemoteProtocolError("the server switched protocols without a request"))

    def _too_much(self) -> Exception:
        if not self._has_headers:
            return self._too_much_headers()
        return ResponseTooLarge(f"has trailers or chunk extensions of more than {MAX_RESPONSE_HEADER_BYTES} bytes")

    def _too_much_headers(self) -> Exception:
        return ResponseTooLarge(f"has headers of more than {MAX_RESPONSE_HEADER_BYTES} bytes", self._status_code)

    def _on_parser_error(self, error: Exception) -> None:
        if self._is_complete:
            self._is_reusable = False  # bytes after a complete response are not part of it
        elif self._has_headers:
            self._fail(TruncatedBody(f"the body does not follow its framing: {error}"))
        elif self._head and "Content-Length" in str(error):
            self._parse_with_one_length(error)
        else:
            self._fail(httpx.RemoteProtocolError(f"no HTTP response: {error}"))

    def _parse_with_one_length(self, error: Exception) -> None:
        """Parse complete headers again, without the repeated lengths."""
        if _END not in b"".join(self._head[-len(_END) :]):  # parts may have a single byte
            return
        head = with_one_length(b"".join(self._head))
        if head is None:
            self._fail(httpx.RemoteProtocolError(f"no HTTP response: {error}"))
        elif head:
            self._head, self._headers, self._parser = [], [], self._new_parser()
            self._parse(head)

    def eof_received(self) -> None:
        """Called when the server closes its side.

        That ends a body without a length. After any other response, `connection_lost` follows.
        """
        is_awaited = self._waiter is not None and self._has_headers
        if is_awaited and self._ends_with_connection and self._is_end_announced():
            self._finish()

    def _is_end_announced(self) -> bool:
        """Whether TLS' close_notify came before the end; without it, the body may be cut (RFC 9112, 9.8)."""
        tls = self._transport.get_extra_info("ssl_object")
        try:
            return tls is None or tls.read(1) == b""
        except ssl.SSLError:
            return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail a running exchange and remove the connection from the pool."""
        self.is_open = False
        if self._waiter is not None:
            self._fail(self._loss(exc))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._on_lost(self)
        self._parser = None  # type: ignore[assignment]  # breaks a reference cycle

    def _loss(self, exc: Exception | None) -> Exception:
        if self._has_headers:
            return TruncatedBody("the connection ended inside the body")
        found = "closed" if exc is None else "reset"
        may_resend = self.uses > 1 and not self._has_first_byte and (self._request.may_repeat or self._is_unread(exc))
        return ConnectionLost(f"the connection was {found} before a response", may_resend=may_resend)

    def _is_unread(self, exc: Exception | None) -> bool:
        """Whether the server closed before it received any byte of the request.

        Its FIN acknowledges all bytes that had arrived. A reset without a FIN (`ConnectionResetError`) proves nothing.
        """
        if exc is not None and not isinstance(exc, BrokenPipeError):
            return False
        # The SYN counts as one byte, so 0 means that the system does not report the number.
        most = self._sent_before + (0 if self._is_tls else 1)
        return self._sent_before <= self._acknowledged() <= most

    def _acknowledged(self) -> int:
        """Bytes that the peer's TCP has acknowledged; -1 if not reported."""
        try:
            info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED + 8)
            return int(struct.unpack_from("Q", info, _BYTES_ACKED)[0])
        except (OSError, AttributeError, struct.error):
            return -1

    def _watch_time(self) -> None:
        """Set the timer to `_until` unless it is set earlier."""
        if self._until < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer, self._timer_at = self._loop.call_at(self._until, self._on_time), self._until

    def _on_time(self) -> None:
        self._timer, self._timer_at = None, math.inf
        if self._waiter is None or self._has_no_room:
            return
        if self._loop.time() >= self._until:
            self._fail(TimeoutError("the request timed out"))
        else:  # the timer belonged to an earlier request, or to a time before a pause
            self._watch_time()

    # --- events of the parser

    def on_message_begin(self) -> None:
        """Called when a response begins. A second one is unsolicited."""
        if self._is_complete:
            self._is_reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called for each header; trailers are dropped (RFC 9110, 6.5.1)."""
        if not self._has_headers:
            self._headers.append((name.lower(), value.translate(_BREAKS_AS_SPACES)))

    def on_headers_complete(self) -> None:
        """Called when status and headers are complete, also of a 1xx response."""
        if self._is_complete or self._waiter is None:
            return
        self._status_code = status = self._parser.get_status_code()
        if status == _SWITCHING:
            self._fail(httpx.RemoteProtocolError("the server switched protocols without a request"))
            return
        if 100 <= status < 200:
            return
        if status < 100:
            self._fail(httpx.RemoteProtocolError(f"no HTTP response: its status is {status}"))
            return
        self._has_headers = True
        self._head = []
        self._unframed = 0
        if len(self._headers) > MAX_RESPONSE_HEADERS:
            self._fail(ResponseTooLarge(f"has more than {MAX_RESPONSE_HEADERS} headers", status))
            return
        self._read_framing()

    def _read_framing(self) -> None:
        length, is_chunked = b"", False
        size = 0
        for name, value in self._headers:
            size += len(name) + len(value) + 4
            if name == b"content-length":
                length = value
            elif name == b"transfer-encoding":
                is_chunked = value.strip().lower() == b"chunked"
                if not is_chunked:
                    self._fail(UnusableResponse("has a transfer-encoding other than chunked", self._status_code))
                    return
            elif name == b"keep-alive":
                self._read_keep_alive(value)
        # With both, a proxy may have found another end of this response, so the next response might not be ours.
        self._is_ambiguous = bool(length) and is_chunked
        self._ends_with_connection = not length and not is_chunked and self._status_code not in _NO_BODY
        if size > MAX_RESPONSE_HEADER_BYTES:
            self._fail(self._too_much_headers())
        elif (
            length
            and not is_chunked
            and len(length) >= self._limit_digits  # a shorter number is smaller
            and _is_larger(length, self._limit)
            and self._status_code not in _NO_BODY
        ):
            self._fail(ResponseTooLarge(status_code=self._status_code))

    def _read_keep_alive(self, value: bytes) -> None:
        """Read the server's idle limit; a margin allows for the network's delay."""
        found = _KEEP_ALIVE_TIMEOUT.search(value)
        if found:
            seconds = whole(found[1]) or 0
            self.keep_alive_seconds = max(seconds - 1.0, seconds / 2)

    def on_body(self, body: bytes) -> None:
        if self._is_complete or self._waiter is None:
            return
        if not self._has_headers:
            self._fail(httpx.RemoteProtocolError("no HTTP response: an interim one has a body"))
            return
        self._unframed = 0
        self._size += len(body)
        if self._size > self._limit:
            self._fail(ResponseTooLarge(status_code=self._status_code))
        else:
            self._parts.append(body)
            if len(self._parts) - self._joined_parts >= _MOST_PARTS:
                self._join_parts()
            if self._ask_for_room is not None and self._size > FREE_BYTES:
                self._wait_for_room(self._ask_for_room)

    def _join_parts(self) -> None:
        """Join the newest parts, because chunks may have a single byte.

        Each part takes 50 bytes besides its content.
        """
        self._parts[self._joined_parts :] = [b"".join(self._parts[self._joined_parts :])]
        self._joined_parts += 1

    def on_message_complete(self) -> None:
        """Called when a response is complete, also an interim one."""
        if self._is_complete or self._waiter is None:
            return
        if not self._has_headers:
            self._headers.clear()
            return
        self._is_complete = True
        self._is_reusable = self._unsent is None and not self._is_ambiguous and self._parser.should_keep_alive()

    def _wait_for_room(self, ask: AskForRoom) -> None:
        """Pause reading a large body until there is room for it."""
        self._ask_for_room = None
        names = dict(self._headers)
        is_plain = b"content-length" in names and b"content-encoding" not in names
        most = (whole(names[b"content-length"]) or 0) if is_plain else self._limit
        if not ask(most, partial(self._on_room, self._waiter)):
            self._has_no_room = True
            self._paused_at = self._loop.time()
            self._transport.pause_reading()

    def _on_room(self, waiter: asyncio.Future[Response] | None) -> None:
        if waiter is None or self._waiter is not waiter or not self._has_no_room:
            return
        self._has_no_room = False
        self._until += self._loop.time() - self._paused_at  # the server does not cause this delay
        self._watch_time()
        self._transport.resume_reading()
        if self._is_complete:
            self._finish()

    # --- ends of an exchange

    def _finish(self) -> None:
        """Return the response, and pool or close the connection."""
        waiter, self._waiter = self._waiter, None
        self._until = math.inf
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._request, self._parts = _NOTHING, []  # an idle connection keeps no bodies in memory
        if self._is_reusable:
            self._on_idle(self)
        else:
            self.abort()
        if waiter is not None and not waiter.done():
            # The next exchange may begin before the caller continues, so the response must not refer to this object.
            waiter.set_result(Response(self._status_code, self._headers, body))

    def _fail(self, error: BaseException) -> None:
        waiter, self._waiter = self._waiter, None
        self.abort()
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)


def with_one_length(text: bytes) -> bytes | None:
    """A response with one `Content-Length` instead of several equal ones (RFC 9110, 8.6).

    `text` begins with the response or with interim ones. Returns None if the values differ or are invalid, and nothing
    if the headers are incomplete.
    """
    while _INTERIM.match(text) and _END in text:
        text = text.partition(_END)[2]
    head, end, body = text.partition(_END)
    if not end:
        return b""
    lines, values = [], set()
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            values |= {one.strip(b" \t") for one in value.split(b",")}
        else:
            lines.append(line)
    is_folded = any(line[:1] in (b" ", b"\t") for line in lines)  # such a line may continue a length
    length = values.pop() if len(values) == 1 else b""
    if is_folded or not length.isdigit():
        return None
    return b"\r\n".join([*lines, b"content-length: " + length]) + end + body


def _is_larger(length: bytes, limit: int) -> bool:
    size = whole(length)
    return size is None or size > limit
