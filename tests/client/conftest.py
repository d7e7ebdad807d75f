"""A real Valkey for the client's tests, with separate queue names for each test."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator

import pytest
from redis import Redis

from handlers.client import AsyncClient, ClientOptions
from handlers.demo.valkey import Valkey, find_valkey
from tests.servers.valkey import LONG_LIMIT


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    with Valkey(find_valkey()) as server:
        yield server.url


@pytest.fixture
def redis(valkey_url: str) -> Iterator[Redis]:
    with Redis.from_url(valkey_url, socket_timeout=60) as redis:
        yield redis


@pytest.fixture
def options() -> ClientOptions:
    name = uuid.uuid4().hex
    return ClientOptions(queue=f"requests-{name}", results=f"results-{name}", lease_seconds=600)


@pytest.fixture
async def client(valkey_url: str, options: ClientOptions) -> AsyncIterator[AsyncClient]:
    async with AsyncClient.for_redis(valkey_url, options, access=LONG_LIMIT) as client:
        yield client
