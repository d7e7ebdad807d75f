"""Serve one handler under uvicorn, with a long graceful shutdown.

The runner of functions-framework waits at most 30 s after SIGTERM, but a request may last minutes.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import signal
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, Final

import functions_framework.aio
import uvicorn
from starlette.requests import Request

import handlers.main
from handlers.doors.slow_clients import timely_protocol
from handlers.settings.settings import Settings
from handlers.telemetry.logs import get_logger
from handlers.wiring.handler import Handler, use_handler
from handlers.wiring.reload import ConfigWatch

_KEEP_ALIVE_SECONDS = 75
"""Longer than the keep-alive of proxies in front, so that they close idle connections first."""


class _Server(uvicorn.Server):
    """A uvicorn server that reports readiness and reloads the configuration."""

    def __init__(
        self,
        config: uvicorn.Config,
        target: str,
        handler: Handler,
        watch: ConfigWatch,
        on_ready: Callable[[int], None],
    ) -> None:
        super().__init__(config)
        self._target = target
        self._handler = handler
        self._watch = watch
        self._on_ready = on_ready
        self._following: asyncio.Task[None] | None = None
        self._retiring: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: Any = None) -> None:
        await self._handler.start()
        await super().startup(sockets)
        if self._watch.is_watching:
            self._following = asyncio.create_task(self._watch.follow(self._change))
        if self.started:
            self._on_ready(self.servers[0].sockets[0].getsockname()[1])

    async def _change(self, settings: Settings) -> None:
        """Use changed settings for new requests; requests in flight keep theirs.

        Invalid settings raise an error and change nothing.
        """
        following = Handler(settings, self._target, self._handler.shared)
        try:
            discarded = await following.start()
        except Exception:
            await following.close_own()
            raise
        previous, self._handler = self._handler, following
        use_handler(self._target, following)
        retiring = asyncio.create_task(previous.retire(discarded))
        self._retiring.add(retiring)
        retiring.add_done_callback(self._retiring.discard)
        get_logger(self._target).info("configuration reloaded")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.started:
            os._exit(0)  # no request has been accepted yet, and the start may take a long time
        self._handler.shared.is_stopping = True
        # In uvicorn, a second SIGINT ends the grace period; a second SIGTERM changes nothing.
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: Any = None) -> None:
        if self._following is not None:
            self._following.cancel()
        await super().shutdown(sockets)
        await asyncio.gather(*self._retiring, return_exceptions=True)
        await self._handler.aclose()


_EXECUTION_ID: Final = b"function-execution-id"


def asgi_app(target: str) -> Any:
    """The functions-framework application of one target.

    A POST passes the framework's middleware (errors, execution ids) and its wrapper of our function. It skips
    Starlette's router and exception layers, which cost a fifth of the CPU time of a request: every POST calls the same
    function, which raises no HTTP exceptions.
    """
    create = functions_framework.aio.create_asgi_app_from_module
    app = create(target, handlers.main.__file__, "http", handlers.main, None)  # type: ignore[no-untyped-call]  # untyped
    function = app.routes[0].endpoint

    async def call(scope: Any, receive: Any, send: Any) -> None:
        response = await function(Request(scope, receive, send))
        await response(scope, receive, send)

    direct: Any = call
    for middleware, arguments, options in reversed(app.user_middleware):
        direct = middleware(direct, *arguments, **options)
    prefix, numbers = secrets.token_hex(4), itertools.count()

    async def serve_http(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await app(scope, receive, send)
            return
        if all(name != _EXECUTION_ID for name, _ in scope["headers"]):
            # Without one, the framework generates a random id, which costs as much as decoding the request.
            scope["headers"] = [*scope["headers"], (_EXECUTION_ID, f"{prefix}-{next(numbers)}".encode())]
        await direct(scope, receive, send)

    return serve_http


def serve(variables: Mapping[str, str], settings: Settings, target: str, on_ready: Callable[[int], None]) -> None:
    """Build the handler, and serve until SIGTERM and the last request.

    `on_ready` is called with the port. Reloads read the settings from `variables`, the environment of the process.
    """
    watch = ConfigWatch(variables, settings, get_logger(target))
    handler = Handler(settings, target, is_refused=lambda: watch.is_refused)
    use_handler(target, handler)
    server = _Server(server_config(settings, target), target, handler, watch, on_ready)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.handle_exit)
    server.run()


def server_config(settings: Settings, target: str) -> uvicorn.Config:
    """uvicorn's configuration for a door."""
    env = settings.env
    return uvicorn.Config(
        asgi_app(target),
        host=env.host,
        port=env.port,
        loop="uvloop",
        # A poller whose byte budget is used up reads the answer later, so reading may take as long as a request.
        http=timely_protocol(env.receive_timeout_seconds, env.request_timeout_seconds),  # type: ignore[arg-type]  # any maker of protocols will do
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing needs the client's address
        backlog=4_096,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(env.shutdown_grace_seconds),
    )
