"""Fixtures: one Valkey (or Redis) for a test process, and an empty one for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from redis.asyncio import Redis

from handlers.client import RedisAccess
from handlers.demo.valkey import Valkey
from handlers.redis_store.connection import RedisOptions
from tests.servers.presence import redis_program

LONG_LIMIT = RedisAccess(timeout_seconds=60)
"""For clients: on a busy machine Redis may need longer than by default."""


def long_limits(url: str) -> RedisOptions:
    """Options of a connection with the same limits."""
    return RedisOptions(url, timeout_seconds=60.0, connect_timeout_seconds=60.0)


@pytest.fixture(scope="session")
def valkey() -> Iterator[Valkey]:
    """A server for all tests of this process."""
    with Valkey(redis_program()) as server:
        yield server


@pytest.fixture
async def store(valkey: Valkey) -> AsyncIterator[Redis]:
    """A client of a server that holds nothing."""
    client = Redis.from_url(valkey.url, socket_timeout=60, socket_connect_timeout=60)
    await client.flushall()
    yield client
    await client.aclose()
