"""A TCP proxy that delays, cuts or drops, and balances connections over backends."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from typing import Self

from tests.waiting import elapse_async

_CHUNK = 65_536


class Proxy:
    """One port in front of `backends` (host, port), used in turn; thread-safe."""

    def __init__(self, *backends: tuple[str, int]) -> None:
        self.backends = list(backends)
        self.delay_seconds = 0.0
        self.is_black_hole = False
        self._turn = itertools.count()
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop
        ).result()
        self.port: int = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Reset every connection."""
        self._loop.call_soon_threadsafe(self._abort_all)

    def _abort_all(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        backends = self.backends
        try:
            host, port = backends[next(self._turn) % len(backends)]
            back_reader, back_writer = await asyncio.open_connection(host, port)
        except (OSError, ZeroDivisionError):  # no answer, or no server
            writer.transport.abort()
            return
        pair = {writer, back_writer}
        self._writers |= pair
        try:
            await asyncio.gather(self._pump(reader, back_writer), self._pump(back_reader, writer))
        finally:
            self._writers -= pair
            for one in pair:
                one.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                if self.delay_seconds:
                    await elapse_async(self.delay_seconds, "what it delays is on its way")
                if self.is_black_hole:
                    continue
                writer.write(data)
                await writer.drain()
        # The end of either side ends both, because HTTP and Redis clients do not half-close.
        writer.transport.abort()

    def close(self) -> None:
        """Stop listening and close every connection."""

        async def end() -> None:
            self._server.close()
            self._abort_all()

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()
