"""How a client reaches Redis: each form of a URL, no more connections than allowed, no waiting for a silent server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.connection import Connection

from handlers.contract.errors import InvalidSetting
from handlers.demo.valkey import Valkey
from handlers.redis_store.connection import (
    PIECE_BYTES,
    STORE_FAILURES,
    ProgressParser,
    RedisOptions,
    connect,
    pieces,
)
from handlers.redis_store.submit.submissions import RedisAccess, client_options
from handlers.settings.environment import Environment
from tests.chaos.proxy import Proxy
from tests.servers.redis_topologies import Server
from tests.servers.valkey import long_limits
from tests.waiting import elapse_async, wait_until_async


@pytest.fixture
def way(each_server: Valkey) -> Iterator[Proxy]:
    with Proxy(("127.0.0.1", urlsplit(each_server.url).port or 0)) as proxy:
        yield proxy


async def test_f24_a_silent_server_fails_within_its_timeout(way: Proxy) -> None:
    options = RedisOptions(f"redis://127.0.0.1:{way.port}")
    assert options.timeout_seconds == Environment().redis_timeout_seconds == 2.0
    async with contextlib.aclosing(connect(options)) as redis:

        async def is_answered() -> bool:
            with contextlib.suppress(*STORE_FAILURES):
                return bool(await redis.ping())
            return False

        await wait_until_async(is_answered, "the first answer")
        way.is_black_hole = True
        # On the same loop, so that a machine that stalls stalls both. Far longer, so that both never end at once.
        clock = asyncio.create_task(elapse_async(30 * options.timeout_seconds, "far longer than allowed"))

        with pytest.raises(STORE_FAILURES):
            await redis.ping()

        assert not clock.done()
        clock.cancel()


async def test_more_calls_at_once_than_connections_wait_for_their_turn(each_server: Valkey) -> None:
    options = RedisOptions(each_server.url, max_connections=4, timeout_seconds=60.0, connect_timeout_seconds=60.0)
    async with contextlib.aclosing(connect(options)) as redis:
        answers = await asyncio.gather(*(redis.set(f"turn-{n}", n, ex=60) for n in range(200)))
        assert all(answers)
        assert len(await redis.client_list()) <= 5


async def test_a_unix_socket_works_like_an_address(each_server_program: str, tmp_path: Path) -> None:
    place = tmp_path / "socket"
    server = Server(each_server_program, "--unixsocket", str(place))
    try:
        async with contextlib.aclosing(connect(long_limits(f"unix://{place}"))) as redis:
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
def test_an_invalid_url_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(InvalidSetting, match="REDIS_URL") as caught:
        connect(RedisOptions(url))
    assert url not in str(caught.value)


async def test_each_received_part_of_a_reply_restarts_the_time_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three parts, 400 seconds of the loop's clock apart, with a limit of 600 seconds."""
    loop, reads, passed_seconds = asyncio.get_running_loop(), 0, 0.0
    now, read, has_ended = loop.time, ProgressParser.read_from_socket, asyncio.Event()

    async def counted(parser: ProgressParser) -> bool:
        nonlocal reads
        has_read = await read(parser)
        reads += 1
        return has_read

    def is_read(expected: int) -> bool:
        return reads >= expected

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal passed_seconds
        while b"GET" not in (commands := await reader.read(65_536)):
            writer.write(b"+OK\r\n" * commands.count(b"*"))
        for part in (b"$3\r\na", b"b", b"c\r\n"):
            expected = reads + 1
            writer.write(part)
            await wait_until_async(partial(is_read, expected), "the part to be read")
            passed_seconds += 400.0
        writer.close()
        await writer.wait_closed()
        has_ended.set()

    monkeypatch.setattr(loop, "time", lambda: now() + passed_seconds)
    monkeypatch.setattr(ProgressParser, "read_from_socket", counted)
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    redis = connect(RedisOptions(f"redis://127.0.0.1:{port}", timeout_seconds=600.0, connect_timeout_seconds=600.0))
    assert await redis.get("large") == b"abc"
    await redis.aclose()
    await has_ended.wait()
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize(("given_seconds", "call_seconds"), [(2.0, 10.0), (10.0, 10.0), (60.0, 60.0)])
def test_a_client_waits_for_a_call_at_least_as_long_as_for_a_connection(
    given_seconds: float, call_seconds: float
) -> None:
    options = client_options("redis://host", RedisAccess(timeout_seconds=given_seconds))
    assert (options.connect_timeout_seconds, options.timeout_seconds) == (given_seconds, call_seconds)


async def test_large_values_are_stored_and_read_completely(valkey: Valkey) -> None:
    redis = connect(long_limits(valkey.url))
    for size in (0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 5_000_000):
        value = bytes(range(256)) * (size // 256 + 1)
        await redis.set("large", value[:size])
        assert await redis.get("large") == value[:size]
    await redis.aclose()


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"]))
        | st.binary()
        | st.integers()
        | st.floats()
        | st.integers(0, 2 * PIECE_BYTES).map(bytes),
        max_size=8,
    )
)
def test_the_arguments_of_a_script_are_encoded_as_the_library_encodes_them(arguments: list[Any]) -> None:
    connection = cast("Any", connect(RedisOptions("redis://localhost"))).connection_pool.make_connection()
    command = ("EVALSHA", "0" * 40, 1, *arguments)
    packed = connection.pack_command(*command)
    assert b"".join(packed) == b"".join(Connection.pack_command(connection, *command))
    assert len(packed) == 1 or sum(map(len, packed)) > PIECE_BYTES / 2, "a small command is one piece"


async def test_a_connection_that_another_task_closes_fails_as_a_lost_one_does(valkey: Valkey) -> None:
    redis = cast("Any", connect(long_limits(valkey.url)))
    kept = redis.connection_pool.make_connection()
    for turns in range(20):
        for call in (lambda: kept.send_command("PING"), kept.read_response):
            await kept.connect()
            running = asyncio.ensure_future(call())
            for _ in range(turns):
                await asyncio.sleep(0)
            await kept.disconnect(nowait=True)
            with contextlib.suppress(*STORE_FAILURES):
                await running
    await redis.aclose()


async def test_closing_never_fails_when_its_time_limit_passes(valkey: Valkey) -> None:
    async with contextlib.aclosing(connect(long_limits(valkey.url))) as redis:
        connection = await cast("Any", redis).connection_pool.get_connection()
        connection.socket_connect_timeout = 0  # the library's limit for closing; passes before the first wait

        await connection.disconnect()

        assert not connection.is_connected


async def test_a_call_without_a_reply_times_out() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    redis = connect(RedisOptions(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}", timeout_seconds=0.2))
    with pytest.raises(Exception, match="Timeout"):
        await asyncio.wait_for(redis.ping(), 60)
    await redis.aclose()
    server.close()
    await server.wait_closed()


async def test_no_call_swallows_a_cancellation(each_server: Valkey) -> None:
    """Calls on a new connection, because a cancelled call closes its own."""
    async with contextlib.aclosing(connect(RedisOptions(each_server.url, timeout_seconds=60.0))) as redis:
        for steps in range(300):
            call = asyncio.ensure_future(redis.ping())
            for _ in range(steps):
                await asyncio.sleep(0)
            is_late = call.done()
            call.cancel()
            await asyncio.wait([call])
            assert is_late or call.cancelled(), f"after {steps} steps"
        assert await redis.ping()


async def test_no_call_swallows_a_cancellation_from_before_it(each_server: Valkey) -> None:
    async with contextlib.aclosing(connect(RedisOptions(each_server.url, timeout_seconds=60.0))) as redis:

        async def cancel_and_call() -> None:
            current = asyncio.current_task()
            assert current is not None
            current.cancel()
            await redis.ping()

        for _ in ("on a new connection", "on a connection in use"):
            call = asyncio.ensure_future(cancel_and_call())
            await asyncio.wait([call])
            assert call.cancelled()
            assert await redis.ping()


async def test_a_command_that_is_half_written_closes_its_connection(each_server: Valkey) -> None:
    """Another command on this connection would be read as the rest of the first."""

    def parts() -> Iterator[bytes]:
        yield b"*2\r\n$4\r\nECHO\r\n$600000\r\n" + bytes(2 * PIECE_BYTES)
        raise MemoryError

    async with contextlib.aclosing(connect(RedisOptions(each_server.url, timeout_seconds=60.0))) as redis:
        assert isinstance(redis, Redis)
        connection = await redis.connection_pool.get_connection()  # type: ignore[no-untyped-call]  # the library's
        with pytest.raises(MemoryError):
            await connection.send_packed_command(parts())
        assert not connection.is_connected
        await redis.connection_pool.release(connection)
        assert await redis.ping()


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
async def test_every_node_of_a_cluster_limits_silence_and_not_the_whole_reply(scheme: str) -> None:
    redis: Any = connect(RedisOptions(f"{scheme}+cluster://localhost:7001", timeout_seconds=7.0))
    found_later = redis.get_node(node_name="127.0.0.1:7002")
    for node in (*redis.startup_nodes, *redis.nodes_manager.startup_nodes.values(), found_later):
        connection = node.acquire_connection()
        assert type(connection).__name__.startswith("Progressive")
        assert node.connection_kwargs["parser_class"] is ProgressParser
        assert connection.socket_timeout == 7.0


@given(st.lists(st.integers(0, 3 * PIECE_BYTES), max_size=5))
def test_pieces_are_bounded_and_lose_nothing(sizes: list[int]) -> None:
    parts = [bytes([number]) * size for number, size in enumerate(sizes)]
    found = list(pieces(parts))
    assert b"".join(chain.from_iterable(found)) == b"".join(parts)
    assert all(sum(len(part) for part in piece) <= PIECE_BYTES for piece in found)
