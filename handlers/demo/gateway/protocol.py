"""HTTP/1.1 on a bare protocol: cheap enough for benchmarks, and free to break every rule where a fault asks."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Final

import httptools

from handlers.demo.gateway.service import Exchange, Service

_REASONS: Final = {
    200: b"OK",
    302: b"Found",
    400: b"Bad Request",
    404: b"Not Found",
    429: b"Too Many Requests",
}


class GatewayProtocol(asyncio.Protocol):
    """One connection: requests are answered in order, one at a time."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[Exchange] = deque()
        self._current: asyncio.Task[None] | None = None
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]  # a stream server gives these

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        """The client left: its slot is free at once."""
        self._queue.clear()
        if self._current is not None:
            self._current.cancel("client left")

    def data_received(self, data: bytes) -> None:
        """Feed the parser; what is no HTTP ends the connection."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.write(
                b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            )
            self.transport.close()

    def on_message_begin(self) -> None:
        """A request begins."""
        self._url, self._headers, self._body = b"", [], []

    def on_url(self, url: bytes) -> None:
        """A part of its target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._headers.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        """A part of its body."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """The request is whole: answer it, or let it wait for the one before."""
        method = self._parser.get_method().decode()
        path = self._url.split(b"?")[0].decode("latin-1")
        self._queue.append(Exchange(method, path, self._headers, b"".join(self._body), time.time()))
        if self._current is None:
            self._next()

    def _next(self) -> None:
        while self._queue and self._current is None:
            exchange = self._queue.popleft()
            if self._service.answer_at_once(exchange, self):
                continue
            self._current = asyncio.create_task(self._service.answer(exchange, self))
            self._current.add_done_callback(self._done)

    def _done(self, _task: asyncio.Task[None]) -> None:
        self._current = None
        if not self.transport.is_closing():
            self._next()

    def head(self, status: int, headers: list[tuple[str, str]], length: int | None) -> bytes:
        """A response's head; `length` None leaves the framing to `headers`."""
        lines = [b"HTTP/1.1 %d %b" % (status, _REASONS.get(status, b"Status"))]
        lines += [f"{name}: {value}".encode("latin-1") for name, value in headers]
        if length is not None:
            lines.append(b"content-length: %d" % length)
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def reply(self, status: int, body: bytes, headers: list[tuple[str, str]] | None = None) -> None:
        """A whole response."""
        given = [("content-type", "application/json"), *(headers or [])]
        self.transport.write(self.head(status, given, len(body)) + body)

    def abort(self) -> None:
        """Reset the connection."""
        self.transport.abort()
