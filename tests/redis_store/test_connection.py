"""A server that is silent is noticed, by whoever asks it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from handlers.demo.valkey import Valkey
from handlers.redis_store.connection import STORE_FAILURES, RedisOptions, connect
from handlers.settings.environment import Environment
from tests.chaos.proxy import Proxy
from tests.waiting import elapse_async


@pytest.fixture
def way(each_server: Valkey) -> Iterator[Proxy]:
    with Proxy(("127.0.0.1", urlsplit(each_server.url).port or 0)) as proxy:
        yield proxy


async def test_f24_a_server_that_says_nothing_has_failed_in_two_seconds(way: Proxy) -> None:
    options = RedisOptions(f"redis://127.0.0.1:{way.port}")
    assert options.timeout_seconds == Environment().redis_timeout_seconds == 2.0
    async with contextlib.aclosing(connect(options)) as redis:
        await redis.ping()
        way.is_black_hole = True
        # On the same loop, so that a machine that stalls stalls both.
        clock = asyncio.create_task(elapse_async(2 * options.timeout_seconds, "twice as long as allowed"))

        with pytest.raises(STORE_FAILURES):
            await redis.ping()

        assert not clock.done()
        clock.cancel()
