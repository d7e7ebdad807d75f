"""A handler that functions-framework's own runner serves starts at the first request; all requests wait for it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import Request

from handlers.settings.settings import load_settings
from handlers.wiring.handler import Handler
from tests.waiting import wait_until_async


def readiness() -> Request:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": "GET", "path": "/readyz", "headers": [], "query_string": b""}
    return Request(scope, receive)


def handler_with(starter: Any) -> Handler:
    handler = Handler(load_settings({"IGW_BASE_URL": "http://127.0.0.1:9"}), "dispatch")
    handler._parts.starters.append(starter)
    return handler


async def test_every_request_waits_for_the_one_start() -> None:
    begun, may_end = 0, asyncio.Event()

    async def slow() -> None:
        nonlocal begun
        begun += 1
        await may_end.wait()

    handler = handler_with(slow)
    asked = [asyncio.ensure_future(handler.respond(readiness())) for _ in range(3)]
    await wait_until_async(lambda: begun, "the start")
    for _ in range(10):
        await asyncio.sleep(0)
    assert not any(one.done() for one in asked)
    may_end.set()
    assert {(await one).status_code for one in asked} == {200}
    assert begun == 1
    await handler.aclose()


async def test_a_start_that_failed_is_repeated_by_the_next_request() -> None:
    failures = [RuntimeError("no topic")]

    async def failing() -> None:
        if failures:
            raise failures.pop()

    handler = handler_with(failing)
    with pytest.raises(RuntimeError, match="no topic"):
        await handler.respond(readiness())
    assert (await handler.respond(readiness())).status_code == 200
    await handler.aclose()
