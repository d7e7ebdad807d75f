"""A cheap load generator: several connections, each with one request at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import httptools


class Connection(asyncio.Protocol):
    """One keep-alive connection, which takes requests from `source` until it is empty."""

    def __init__(self, source: Iterator[bytes], statuses: dict[int, int]) -> None:
        self._source = source
        self._statuses = statuses
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._next()

    def _next(self) -> None:
        request = next(self._source, None)
        if request is None:
            self.transport.close()
            if not self.done.done():
                self.done.set_result(None)
            return
        self._parser = httptools.HttpResponseParser(self)
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        self._statuses[status] = self._statuses.get(status, 0) + 1
        asyncio.get_running_loop().call_soon(self._next)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or ConnectionResetError("the server closed the connection"))


async def send_all(url: str, make: Callable[[int], bytes], count: int, connections: int) -> dict[int, int]:
    """Send `count` requests over several connections; returns the counts of each status."""
    host, port = url.removeprefix("http://").split("/")[0].split(":")
    source = (make(number) for number in range(count))
    statuses: dict[int, int] = {}
    loop = asyncio.get_running_loop()
    opened = [
        (await loop.create_connection(lambda: Connection(source, statuses), host, int(port)))[1]
        for _ in range(min(connections, count))
    ]
    await asyncio.gather(*(connection.done for connection in opened))
    return statuses


def http_post(path: str, headers: dict[str, str], body: bytes) -> bytes:
    """Encode a POST as bytes."""
    lines = [f"POST {path} HTTP/1.1", "host: bench", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
