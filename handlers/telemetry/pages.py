"""Small pages on a port of their own: health, readiness, metrics. For a process that serves nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from aiohttp import web


@dataclass(frozen=True, slots=True)
class Page:
    """What a path answers."""

    status_code: int
    body: bytes
    content_type: str = "text/plain"


class PagesServer:
    """Serves `pages` by path; costs nothing while nobody asks."""

    def __init__(self, pages: Mapping[str, Callable[[], Page]], host: str, port: int) -> None:
        self._pages = pages
        self._host = host
        self._port = port
        self._runner: web.AppRunner | None = None

    async def start(self) -> int:
        """Listen; returns the port. Raises `OSError` where it is taken."""
        app = web.Application()
        for path in self._pages:
            app.router.add_get(path, self._answer)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port)
        await site.start()
        port: int = self._runner.addresses[0][1]
        return port

    @property
    def port(self) -> int:
        """Where it listens; 0 before."""
        return int(self._runner.addresses[0][1]) if self._runner is not None else 0

    def show(self, pages: Mapping[str, Callable[[], Page]]) -> None:
        """Other pages under the same paths from now on."""
        self._pages = pages

    async def _answer(self, request: web.Request) -> web.Response:
        page = self._pages[request.path]()
        return web.Response(
            body=page.body, status=page.status_code, headers={"content-type": page.content_type}
        )

    async def aclose(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()
