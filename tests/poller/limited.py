"""A poller with little memory, and how it handles large requests and answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from redis.asyncio import Redis

from handlers.demo.servers import Child
from handlers.demo.stack import ready_port
from tests.servers.forked import COMMAND
from tests.servers.raw_http import answer, running_raw_http
from tests.waiting import wait_until_async
from tests.way.breakable import QUEUE, RESULTS

MEMORY_LIMIT = 600 * 2**20
"""Bytes of address space, from which a poller derives a byte budget of 117 MB."""
_LIMITED = f"""
import os, resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY_LIMIT}, {MEMORY_LIMIT}))
os.execv(sys.argv[1], sys.argv[1:])
"""


async def queue_requests(store: Redis, count: int, request_bytes: int) -> None:
    """Queue requests whose payloads have so many bytes."""
    deadline = int(time.time()) + 3_600
    for number in range(count):
        member = {"id": f"r-{number}", "deadline": str(deadline), "payload": {"p": "x" * request_bytes}}
        await store.zadd(QUEUE, {json.dumps(member): deadline})


@contextlib.asynccontextmanager
async def limited_poller(
    redis_url: str, gateway_url: str, *, has_handler: bool = False, is_limited: bool = True
) -> AsyncIterator[Child]:
    """A poller and, if it has one, its handler; each is under `RLIMIT_AS` if they are limited."""
    variables = {
        "REDIS_URL": redis_url,
        "IGW_BASE_URL": gateway_url,
        "METRICS_PORT": "0",
        "WORKERS": "64",
        "REDIS_TIMEOUT_SECONDS": "30",
        "LEASE_SECONDS": "60",  # a busy machine may take longer than 15 s with a large body
    }
    limit = [sys.executable, "-c", _LIMITED] if is_limited else []
    with contextlib.ExitStack() as parts:
        if has_handler:
            door = [*limit, COMMAND, "serve", "--target", "dispatch"]
            own = {**variables, "PORT": "0", "HOST": "127.0.0.1"}
            handler = parts.enter_context(Child("handler", door, own))
            port = await asyncio.to_thread(handler.wait_for, ready_port)
            variables["HANDLER_URL"] = f"http://127.0.0.1:{port}"
        yield parts.enter_context(Child("poller", [*limit, COMMAND, "poll"], variables))


async def results_of(store: Redis, poller: Child, count: int, timeout_seconds: float = 110) -> list[dict[str, Any]]:
    """The results of `count` requests. Fails if the poller ends."""
    found: list[Any] = []

    async def are_there() -> bool:
        assert poller.process.poll() is None, poller.log_tail()
        text: Any = await store.rpop(RESULTS)
        if text:
            found.append(json.loads(text))
            return False
        return len(found) >= count

    await wait_until_async(are_there, "all results", timeout_seconds=timeout_seconds)
    return found


async def check_each_is_inferred_once(
    redis_url: str,
    store: Redis,
    count: int,
    request_bytes: int,
    body: bytes,
    *,
    timeout_seconds: float = 110,
    has_handler: bool = False,
) -> None:
    """Run `count` requests whose answers are `body` through one limited poller, and its handler if it has one."""
    await queue_requests(store, count, request_bytes)
    async with running_raw_http() as gateway:
        gateway.reply(answer(200, body))
        async with limited_poller(redis_url, gateway.url, has_handler=has_handler) as poller:
            results = await results_of(store, poller, count, timeout_seconds)
            assert len(gateway.received) == count, poller.log_tail()
        assert Counter(result["status_code"] for result in results) == {200: count}
        assert len({result["id"] for result in results}) == count
