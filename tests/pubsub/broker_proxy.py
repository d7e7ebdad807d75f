"""A server in front of the emulator that answers as the real service may and the emulator never does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web

Fault = Callable[[bytes], web.Response | None]
"""Given a request's body: the answer in place of the emulator's, or None."""


class BrokerProxy:
    """Counts the calls; `fault` may answer them. While `is_resetting`, connections that carry a body are cut; while
    `is_hanging`, such calls wait until it ends."""

    def __init__(self, upstream: str) -> None:
        self.calls = 0
        self.most_at_once = 0
        self._running = 0
        self.authorization: list[str] = []
        self.fault: Fault = lambda _body: None
        self.is_resetting = False
        self._goes_on = asyncio.Event()
        self._goes_on.set()
        self.host = ""
        self._upstream = upstream

    @property
    def is_hanging(self) -> bool:
        return not self._goes_on.is_set()

    @is_hanging.setter
    def is_hanging(self, hangs: bool) -> None:
        (self._goes_on.clear if hangs else self._goes_on.set)()

    async def answer(self, request: web.Request) -> web.Response:
        self.calls += 1
        self._running += 1
        self.most_at_once = max(self.most_at_once, self._running)
        try:
            return await self._answer(request)
        finally:
            self._running -= 1

    async def _answer(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.authorization.append(request.headers.get("Authorization", ""))
        if body:
            await self._goes_on.wait()
        if body and self.is_resetting and request.transport:
            request.transport.abort()
            return web.Response()
        if (response := self.fault(body)) is not None:
            return response
        url = f"http://{self._upstream}{request.raw_path}"
        async with (
            aiohttp.ClientSession() as client,
            client.request(
                request.method, url, data=body, headers={"Content-Type": "application/json"}
            ) as answer,
        ):
            return web.Response(
                status=answer.status, body=await answer.read(), content_type="application/json"
            )


def refusal(status: int, message: str = "told to fail") -> web.Response:
    return web.json_response({"error": {"code": status, "message": message}}, status=status)


@asynccontextmanager
async def broker_proxy(upstream: str) -> Any:
    proxy = BrokerProxy(upstream)
    application = web.Application(client_max_size=50_000_000)
    application.router.add_route("*", "/{path:.*}", proxy.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    proxy.host = f"{host}:{port}"
    try:
        yield proxy
    finally:
        proxy.is_hanging = False
        await runner.cleanup()
