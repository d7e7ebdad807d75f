"""Serve the poller's HTTP pages: health, readiness, metrics."""

from __future__ import annotations

import asyncio
import importlib
import socket
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    import uvicorn

_ALLOWED: Final = frozenset({"GET", "HEAD"})
_BACKLOG: Final = 128


class Page(msgspec.Struct, frozen=True):
    """The response of one path."""

    status_code: int
    body: bytes
    content_type: str = "text/plain"


class PagesServer:
    """Serves `pages` by path, with uvicorn in the caller's event loop.

    `listen` opens the port, `serve` answers. A poller begins to claim in between, because importing uvicorn takes time.
    `protocol` imports and returns uvicorn's protocol, which bounds what a client may send.
    """

    def __init__(
        self, pages: Mapping[str, Callable[[], Page]], host: str, port: int, protocol: Callable[[], Any]
    ) -> None:
        self._pages = pages
        self._protocol = protocol
        self._host = host
        self._port = port
        self._socket: socket.socket | None = None
        self._server: uvicorn.Server | None = None

    def listen(self) -> int:
        """Listen and return the port; connections wait for `serve`. Raises `OSError` if the port is in use."""
        if self._socket is None:
            family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
            self._socket = socket.create_server((self._host, self._port), family=family, backlog=_BACKLOG)
        return int(self._socket.getsockname()[1])

    async def serve(self) -> None:
        uvicorn = await asyncio.to_thread(importlib.import_module, "uvicorn")
        protocol = await asyncio.to_thread(self._protocol)
        if self._server is not None:
            return
        config = uvicorn.Config(
            self._answer,
            interface="asgi3",
            http=protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=1,
        )
        config.load()
        self._server = uvicorn.Server(config)
        self._server.lifespan = config.lifespan_class(config)
        self.listen()
        await self._server.startup(sockets=[self._socket] if self._socket else None)

    async def _answer(self, scope: Any, _receive: Any, send: Any) -> None:
        """Handle one request; an ASGI application."""
        make = self._pages.get(scope["path"])
        if make is None:
            page = Page(404, b"not found\n")
        elif scope["method"] not in _ALLOWED:
            page = Page(405, b"method not allowed\n")
        else:
            page = make()
        length = str(len(page.body)).encode()
        headers = [(b"content-type", page.content_type.encode()), (b"content-length", length)]
        await send({"type": "http.response.start", "status": page.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": page.body})

    async def aclose(self) -> None:
        if self._server is not None:
            await self._server.shutdown(sockets=[self._socket] if self._socket else None)
        elif self._socket is not None:
            self._socket.close()
