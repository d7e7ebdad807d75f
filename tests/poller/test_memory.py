"""A poller stays within its memory with large requests and answers, each inferred once.

The limit is the kernel's (`RLIMIT_AS`): a poller that holds too much cannot allocate, and ends.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from typing import Any

import pytest
from redis.asyncio import Redis

from handlers.demo.servers import Child
from handlers.demo.valkey import Valkey
from tests.servers.forked import COMMAND
from tests.servers.raw_http import answer, running_raw_http
from tests.waiting import wait_until_async
from tests.way.breakable import QUEUE, RESULTS

LIMIT = 600 * 2**20
LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({0}, {0}))
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("count", "request_bytes", "answer_bytes"),
    [(24, 9_900_000, 10), (64, 10, 7_900_000)],
    ids=["large requests", "large answers"],
)
async def test_large_bodies_pass_within_the_memory_limit_and_each_is_inferred_once(
    valkey: Valkey, store: Redis, count: int, request_bytes: int, answer_bytes: int
) -> None:
    deadline = int(time.time()) + 3_600
    for number in range(count):
        member = {"id": f"r-{number}", "deadline": str(deadline), "payload": {"p": "x" * request_bytes}}
        await store.zadd(QUEUE, {json.dumps(member): deadline})
    async with running_raw_http() as gateway:
        gateway.say(answer(200, b"y" * answer_bytes))
        variables = {
            "REDIS_URL": valkey.url,
            "IGW_BASE_URL": gateway.url,
            "METRICS_PORT": "0",
            "WORKERS": "64",
            "REDIS_TIMEOUT_SECONDS": "30",
        }
        command = [sys.executable, "-c", LIMITED.format(LIMIT), COMMAND, "poll"]
        with Child("poller", command, variables) as poller:
            found: list[Any] = []

            async def are_there() -> bool:
                assert poller.process.poll() is None, poller.log_tail()
                if text := await store.rpop(RESULTS):
                    found.append(text)
                    return False
                return len(found) >= count

            await wait_until_async(are_there, "all results", timeout_seconds=110)
        results = [json.loads(text) for text in found]
        assert Counter(result["status_code"] for result in results) == {200: count}
        assert len({result["id"] for result in results}) == count
        assert len(gateway.received) == count
