"""Real sources of gates: a /metrics page, a Prometheus that scrapes two of them, a Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from redis.asyncio import Redis

from handlers.gates.sources import GateSources
from handlers.redis_store.limits.limits import RedisGateStore
from tests.gates.building import ReadableLog, sources
from tests.gates.exporter import Exporter, running_exporter
from tests.gates.redis_server import RedisServer, running_redis
from tests.servers.prometheus import running_prometheus


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    with running_exporter() as running:
        yield running


@pytest.fixture(scope="session")
def routers() -> Iterator[tuple[Exporter, Exporter]]:
    """Two replicas of a router; tests use pools of different names."""
    with running_exporter() as first, running_exporter() as second:
        yield first, second


@pytest.fixture(scope="session")
def prometheus_url(routers: tuple[Exporter, Exporter]) -> Iterator[str]:
    with running_prometheus([router.address for router in routers]) as url:
        yield url


@pytest.fixture
def log() -> ReadableLog:
    return ReadableLog()


@pytest.fixture
async def from_prometheus(prometheus_url: str, log: ReadableLog) -> AsyncIterator[GateSources]:
    given = sources(prometheus_url=prometheus_url, log=log)
    yield given
    await given.http.aclose()


@pytest.fixture
async def from_pages(log: ReadableLog) -> AsyncIterator[GateSources]:
    given = sources(log=log)
    yield given
    await given.http.aclose()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    """A connection to an empty server."""
    client = Redis.from_url(
        f"redis://{redis_server.address}", socket_timeout=60, socket_connect_timeout=60, max_connections=64
    )
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
def from_redis(redis: Redis, log: ReadableLog) -> GateSources:
    store = RedisGateStore(redis)
    return sources(stores=lambda address: store, log=log)


@pytest.fixture
async def from_impatient(redis_server: RedisServer, redis: Redis, log: ReadableLog) -> AsyncIterator[GateSources]:
    """Sources whose calls fail after two seconds: on a paused server, and now and then on a busy machine."""
    client = Redis.from_url(f"redis://{redis_server.address}", socket_timeout=2, max_connections=64)
    store = RedisGateStore(client)
    yield sources(stores=lambda address: store, log=log)
    await client.aclose()
