"""A call through the transport, and servers of one coroutine."""

from __future__ import annotations

import asyncio
import contextlib
import math
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

from handlers.transport.connection import Response
from handlers.transport.transport import Transport

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving_raw(serve: Serve, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """A server of one coroutine per connection; gives its URL."""
    running: dict[asyncio.StreamWriter, asyncio.Task[None] | None] = {}

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        running[writer] = asyncio.current_task()
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await serve(reader, writer)
        writer.close()

    server = await asyncio.start_server(handle, host, 0, limit=1 << 20, ssl=tls)
    async with server:
        port = server.sockets[0].getsockname()[1]
        scheme = "http" if tls is None else "https"
        yield f"{scheme}://[{host}]:{port}/x" if ":" in host else f"{scheme}://{host}:{port}/x"
        for writer in running:
            writer.transport.abort()
        await asyncio.gather(*(task for task in running.values() if task is not None))


async def post(transport: Transport, url: str, body: bytes = b"{}", until: float = math.inf) -> Response:
    async with asyncio.timeout(60):
        return await transport.post(url, {"content-type": "application/json"}, body, until)
