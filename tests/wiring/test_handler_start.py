"""A handler that functions-framework's own runner serves starts at the first request; all requests wait for it."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from starlette.requests import Request

from handlers.contract.errors import InvalidSetting
from handlers.settings.settings import load_settings
from handlers.wiring.handler import Handler
from tests.servers.pubsub_broker import Refusal, broker_in_threads, refusal
from tests.waiting import LIMIT_SECONDS, wait_until_async


def readiness() -> Request:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": "GET", "path": "/readyz", "headers": [], "query_string": b""}
    return Request(scope, receive)


def push_handler(broker: str) -> Handler:
    """A handler that checks at its start whether its topic exists."""
    variables = {"PROJECT_ID": "p-roject", "RESULT_TOPIC_ID": "results", "PUSH_AUTH": "none"}
    return Handler(load_settings({**variables, "PUBSUB_EMULATOR_HOST": broker}), "pubsub_push")


async def test_every_request_waits_for_the_one_start() -> None:
    begun: list[str] = []
    may_end = threading.Event()

    def slow(method: str, _request: bytes) -> None:
        begun.append(method)
        may_end.wait(LIMIT_SECONDS)

    with broker_in_threads(slow) as broker:
        handler = push_handler(broker)
        asked = [asyncio.ensure_future(handler.respond(readiness())) for _ in range(3)]
        await wait_until_async(lambda: begun, "the start")
        for _ in range(10):
            await asyncio.sleep(0)
        assert not any(one.done() for one in asked)
        may_end.set()
        assert {(await one).status_code for one in asked} == {200}
        assert len(begun) == 1
        await handler.aclose()


async def test_a_start_that_failed_is_repeated_by_the_next_request() -> None:
    answers: list[Refusal] = [refusal("NOT_FOUND")]
    with broker_in_threads(lambda _method, _request: answers.pop() if answers else None) as broker:
        handler = push_handler(broker)
        with pytest.raises(InvalidSetting, match="RESULT_TOPIC_ID"):
            await handler.respond(readiness())
        assert (await handler.respond(readiness())).status_code == 200
        await handler.aclose()
