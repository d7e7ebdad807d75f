"""A real Valkey for the commands' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis import Redis

from handlers.demo.valkey import Valkey, find_valkey


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    with Valkey(find_valkey()) as server:
        yield server.url


@pytest.fixture
def redis(valkey_url: str) -> Iterator[Redis]:
    with Redis.from_url(valkey_url, socket_timeout=60) as redis:
        yield redis
