"""Queues on a real server; what may differ between Valkey and Redis is tried on each that is here."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator

import pytest
from redis.asyncio import Redis

from handlers.demo.valkey import Valkey
from tests.redis_store.queue.queueing import Bench
from tests.servers.presence import program_path, valkey_program


@pytest.fixture(scope="session", params=["valkey", "redis"])
def each_server_program(request: pytest.FixtureRequest) -> str:
    """One program after the other."""
    return program_path("redis-server") if request.param == "redis" else valkey_program()


@pytest.fixture(scope="session")
def each_server(each_server_program: str) -> Iterator[Valkey]:
    """One server after the other."""
    with Valkey(each_server_program) as server:
        yield server


@pytest.fixture
async def bench(valkey: Valkey) -> AsyncIterator[Bench]:
    """A queue of the test's own, on an empty server."""
    redis = Redis.from_url(valkey.url, socket_timeout=60, socket_connect_timeout=60)
    await redis.flushall()
    yield Bench(redis, uuid.uuid4().hex)
    await redis.aclose()
