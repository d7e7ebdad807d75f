"""An HTTP server that sends scripted bytes, for faults that normal servers never make."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from tests.waiting import wait_until_async

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, zero seconds; closing then sends a reset


class End(Enum):
    """The end of the connection after the scripted bytes."""

    KEEP = "keep the connection for the next request"
    CLOSE = "close it"
    RESET = "reset it"
    HANG = "say nothing more"


@dataclass(frozen=True)
class Answer:
    """`repeats` times `chunk` after the `head`; with `reads_request` False, sent before the request is read."""

    head: bytes = b""
    chunk: bytes = b""
    repeats: int = 1
    end: End = End.KEEP
    reads_request: bool = True


def answer(
    status: int = 200,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    *,
    declared: int | None = None,
    end: End = End.KEEP,
) -> Answer:
    """A well-formed answer; `declared` is a content-length that differs from the body's length."""
    length = len(body) if declared is None else declared
    lines = [f"HTTP/1.1 {status} Scripted", f"content-length: {length}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return Answer("\r\n".join([*lines, "", ""]).encode(), body, end=end)


@dataclass(frozen=True)
class Received:
    """A request as received; `connection` counts from 1."""

    head: bytes
    body: bytes
    connection: int

    @property
    def path(self) -> str:
        """The target of the request line."""
        return self.head.split(b" ", 2)[1].decode()

    @property
    def headers(self) -> list[tuple[str, str]]:
        """Names in lower case, values as sent, in their order."""
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        pairs = [line.partition(":") for line in lines if line]
        return [(name.lower(), value.strip()) for name, _, value in pairs]

    def header(self, name: str) -> str | None:
        """The only header with that name, or None."""
        values = [value for found, value in self.headers if found == name]
        assert len(values) < 2, f"{name} was sent {len(values)} times"
        return values[0] if values else None


@dataclass
class RawHttp:
    """A running server; `script` is answered in order, its last answer indefinitely."""

    script: list[Answer] = field(default_factory=lambda: [answer(200, b"{}")])
    received: list[Received] = field(default_factory=list)
    connections: int = 0
    port: int = 0
    is_tls: bool = False
    is_holding: bool = False
    """While True, no request is answered."""
    _served: int = 0
    _open: dict[asyncio.StreamWriter, asyncio.Task[None]] = field(default_factory=dict)

    @property
    def open_connections(self) -> int:
        """Connections that are being served."""
        return len(self._open)

    @property
    def url(self) -> str:
        """The base URL."""
        return f"{'https' if self.is_tls else 'http'}://127.0.0.1:{self.port}"

    def reply(self, *answers: Answer) -> None:
        """Answer with these from now on."""
        self.script = list(answers)
        self._served = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until it ends."""
        self.connections += 1
        connection = self.connections
        task = asyncio.current_task()
        assert task is not None
        self._open[writer] = task
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            while await self._exchange(reader, writer, connection):
                pass
        del self._open[writer]
        writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: int) -> bool:
        """Handle one request; returns whether the connection continues."""
        chosen = self.script[min(self._served, len(self.script) - 1)]
        if chosen.reads_request:
            self.received.append(await _received(reader, connection))
            chosen = self.script[min(self._served, len(self.script) - 1)]
        await wait_until_async(lambda: not self.is_holding, "the end of the hold")
        self._served += 1
        writer.write(chosen.head)
        for _ in range(chosen.repeats):
            writer.write(chosen.chunk)
            await writer.drain()
        if chosen.end is End.HANG:
            await reader.read()  # until the client disconnects
        if chosen.end is End.RESET:
            writer.get_extra_info("socket").setsockopt(1, 13, _RESET)  # SOL_SOCKET, SO_LINGER
            writer.transport.abort()
        return chosen.end is End.KEEP

    def close_connections(self) -> None:
        """Close all open connections, like a restarting server."""
        for writer in self._open:
            writer.transport.abort()

    async def served(self) -> None:
        """Return when no connection is open."""
        await asyncio.gather(*self._open.values(), return_exceptions=True)


async def _received(reader: asyncio.StreamReader, connection: int) -> Received:
    head = await reader.readuntil(b"\r\n\r\n")
    request = Received(head[:-4], b"", connection)
    length = int(request.header("content-length") or 0)
    return Received(head[:-4], await reader.readexactly(length), connection)


@contextlib.asynccontextmanager
async def running_raw_http(tls: ssl.SSLContext | None = None) -> AsyncIterator[RawHttp]:
    """A server on a free port of the loopback interface."""
    raw = RawHttp(is_tls=tls is not None)
    server = await asyncio.start_server(raw.serve, "127.0.0.1", 0, ssl=tls)
    raw.port = server.sockets[0].getsockname()[1]
    try:
        yield raw
    finally:
        server.close()
        raw.close_connections()
        await raw.served()
        await server.wait_closed()
