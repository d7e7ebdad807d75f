"""Pub/Sub's publish call and nothing behind it: so that the push door is measured, not a broker."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httptools
import msgspec


class _Publish(msgspec.Struct):
    messages: list[msgspec.Raw]


class Sink(asyncio.Protocol):
    """Confirms every publish."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        count = len(msgspec.json.decode(self._body, type=_Publish).messages) if self._body else 0
        self._body = b""
        answer = msgspec.json.encode({"messageIds": [str(number) for number in range(count)]})
        self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(answer), answer))


@contextlib.contextmanager
def running_sink() -> Iterator[str]:
    """A sink on a free port, in a process of its own; gives its `host:port`."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.bench.sink"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(Sink, "127.0.0.1", 0)
    print(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve())
