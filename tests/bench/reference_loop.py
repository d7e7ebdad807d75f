"""The minimum in Python: a bare ASGI application that forwards each POST with aiohttp."""

from __future__ import annotations

import os
from typing import Any

import aiohttp

_session: aiohttp.ClientSession | None = None


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Read the body, POST it to the gateway, and return the gateway's answer."""
    global _session  # noqa: PLW0603  # one session a process, opened on its loop
    if scope["type"] != "http":
        return
    if _session is None:
        _session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    body, has_more = b"", True
    while has_more:
        event = await receive()
        body += event.get("body", b"")
        has_more = event.get("more_body", False)
    async with _session.post(os.environ["BENCH_GATEWAY"], data=body) as response:
        answer = await response.read()
    await send({"type": "http.response.start", "status": response.status, "headers": []})
    await send({"type": "http.response.body", "body": answer})
