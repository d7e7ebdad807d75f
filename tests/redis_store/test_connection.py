"""How a client reaches Redis: each form of a URL, no more connections than allowed, no waiting for a silent server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from redis.asyncio.cluster import RedisCluster

from handlers.contract.errors import InvalidSetting
from handlers.demo.valkey import Valkey
from handlers.redis_store.connection import STORE_FAILURES, RedisOptions, connect
from handlers.settings.environment import Environment
from tests.chaos.proxy import Proxy
from tests.servers.redis_topologies import Server
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


async def test_more_calls_at_once_than_connections_wait_for_their_turn(each_server: Valkey) -> None:
    options = RedisOptions(each_server.url, max_connections=4)
    async with contextlib.aclosing(connect(options)) as redis:
        answers = await asyncio.gather(*(redis.set(f"turn-{n}", n, ex=60) for n in range(200)))
        assert all(answers)
        assert len(await redis.client_list()) <= 5


async def test_a_socket_of_this_machine_is_as_good_as_an_address(
    each_server_program: str, tmp_path: Path
) -> None:
    place = tmp_path / "socket"
    server = Server(each_server_program, "--unixsocket", str(place))
    try:
        async with contextlib.aclosing(connect(RedisOptions(f"unix://{place}"))) as redis:
            assert await redis.ping()
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("url", "is_cluster"),
    [
        ("redis://host", False),
        ("redis://user:p%40ss@host:6380/2", False),
        ("rediss://[::1]:6380", False),
        ("unix:///run/redis.sock", False),
        ("redis+sentinel://one:26379,two/master/3", False),
        ("rediss+sentinel://:secret@one:26379/master?sentinel_password=other", False),
        ("redis+cluster://one:7000,two:7001", True),
        ("rediss+cluster://user:secret@[::1]:7000", True),
    ],
)
async def test_every_form_of_a_url_makes_a_client_that_shows_no_password(url: str, is_cluster: bool) -> None:
    options = RedisOptions(url)
    async with contextlib.aclosing(connect(options)) as redis:
        assert isinstance(redis, RedisCluster) is options.is_cluster is is_cluster
        assert "secret" not in repr(redis) + repr(options)
        assert "p@ss" not in repr(redis)


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://one:26379",
        "host:6379",
        "redis://host:port",
        "http://host",
        "redis://host?poolsize=9",
    ],
)
def test_a_url_that_is_none_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(InvalidSetting, match="REDIS_URL") as caught:
        connect(RedisOptions(url))
    assert url not in str(caught.value)
