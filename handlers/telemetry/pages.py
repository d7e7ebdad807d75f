"""HTTP pages of a process that serves nothing else: health, readiness, metrics."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import uvicorn

_ALLOWED: Final = frozenset({"GET", "HEAD"})
_BACKLOG: Final = 128


@dataclass(frozen=True, slots=True)
class Page:
    """Response of a path."""

    status_code: int
    body: bytes
    content_type: str = "text/plain"


class PagesServer:
    """Serves `pages` by path, with uvicorn in the caller's event loop."""

    def __init__(self, pages: Mapping[str, Callable[[], Page]], host: str, port: int) -> None:
        self._pages = pages
        self._host = host
        self._port = port
        self._socket: socket.socket | None = None
        self._server: uvicorn.Server | None = None

    async def start(self) -> int:
        """Listen and return the port; raises `OSError` if the port is in use."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        self._socket = socket.create_server((self._host, self._port), family=family, backlog=_BACKLOG)
        config = uvicorn.Config(
            self._answer,
            interface="asgi3",
            http="httptools",
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
        await self._server.startup(sockets=[self._socket])
        return self.port

    @property
    def port(self) -> int:
        """Listening port; 0 before `start`."""
        return int(self._socket.getsockname()[1]) if self._socket is not None else 0

    def show(self, pages: Mapping[str, Callable[[], Page]]) -> None:
        """Replace the pages."""
        self._pages = pages

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
