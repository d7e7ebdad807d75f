"""Serve the status page under uvicorn.

Slow clients are cut as at a door. The event loop itself answers health checks, also while all threads read views.
"""

from __future__ import annotations

import asyncio
import io
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Never

import uvicorn
from flask import Request, Response
from uvicorn.middleware.wsgi import build_environ
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from handlers.doors.slow_clients import timely_protocol
from handlers.status.page import HEALTH_PATHS, probe_answer

_THREADS: Final = 8
"""Views that can be served at once; each mostly waits for Redis."""
_MAX_FORM_BYTES: Final = 65_536
"""A form has a token, a queue and the id of a dead letter."""


class StatusApp:
    """The ASGI application; `respond` answers one request, in a thread."""

    def __init__(self, respond: Callable[[Request], Response]) -> None:
        self._respond = respond
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="status")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        response = probe_answer() if scope["path"] in HEALTH_PATHS else await self._view(scope, receive)
        headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in response.headers]
        await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": response.get_data()})

    async def _view(self, scope: Any, receive: Any) -> Response:
        body, has_more = b"", True
        while has_more and len(body) <= _MAX_FORM_BYTES:
            message = await receive()
            body += message.get("body", b"")
            has_more = message.get("more_body", False)
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._answer, scope, body)

    def _answer(self, scope: Any, body: bytes) -> Response:
        try:
            if len(body) > _MAX_FORM_BYTES:
                raise RequestEntityTooLarge
            environ = build_environ(scope, {"type": "http.request", "body": body, "more_body": False}, io.BytesIO(body))
            return self._respond(Request({**environ, "CONTENT_LENGTH": str(len(body))}))
        except HTTPException as error:
            return Response(f"{error.name}\n", error.code, mimetype="text/plain")


def serve_status(
    respond: Callable[[Request], Response],
    *,
    host: str,
    port: int,
    receive_seconds: float,
    on_ready: Callable[[], None],
) -> Never:
    """Serve until SIGTERM or SIGINT, then end the process. `on_ready` is called once the port is open."""

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:
                on_ready()

    server = Server(
        uvicorn.Config(
            StatusApp(respond),
            host=host,
            port=port,
            interface="asgi3",
            http=timely_protocol(receive_seconds, receive_seconds),  # type: ignore[arg-type]  # any maker of protocols will do
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=1,
        )
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.handle_exit)
    server.run()
    os._exit(0)  # a view that waits for Redis has nothing to finish, but its thread would delay the end
