"""The time limit of a connection counts silence: what moves may take longer, however large it is."""

from __future__ import annotations

import asyncio
from itertools import chain
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from handlers.demo.valkey import Valkey
from handlers.redis_store.connection import RedisOptions, connect
from handlers.redis_store.progress import PIECE_BYTES, pieces

VALUE = b"x" * 1_000_000


class Limit:
    """What an `asyncio.timeout` does, recorded."""

    def __init__(self) -> None:
        self.moved_to: list[float] = []

    def reschedule(self, when: float) -> None:
        """Noted."""
        self.moved_to.append(when)


async def test_each_part_of_a_reply_that_arrives_begins_the_limit_anew(valkey: Valkey) -> None:
    redis = connect(RedisOptions(valkey.url, timeout_seconds=7.0))
    assert isinstance(redis, Redis)
    await redis.set("large", VALUE)
    pool: Any = redis.connection_pool
    connection = await pool.get_connection()
    limit = Limit()
    began_at = asyncio.get_running_loop().time()
    await connection.send_command("GET", "large")
    connection._active_read_timeout = limit
    assert await connection._parser.read_response() == VALUE
    assert len(limit.moved_to) > 1
    assert all(when >= began_at + 7.0 for when in limit.moved_to)
    connection._active_read_timeout = None
    await pool.release(connection)
    await redis.aclose()


async def test_large_values_go_and_come_whole(valkey: Valkey) -> None:
    redis = connect(RedisOptions(valkey.url))
    for size in (0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 5_000_000):
        value = bytes(range(256)) * (size // 256 + 1)
        await redis.set("large", value[:size])
        assert await redis.get("large") == value[:size]
    await redis.aclose()


async def test_silence_still_ends_a_call() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    redis = connect(
        RedisOptions(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}", timeout_seconds=0.2)
    )
    with pytest.raises(Exception, match="Timeout"):
        await asyncio.wait_for(redis.ping(), 60)
    await redis.aclose()
    server.close()
    await server.wait_closed()


@given(st.lists(st.integers(0, 3 * PIECE_BYTES), max_size=5))
def test_pieces_are_bounded_and_lose_nothing(sizes: list[int]) -> None:
    parts = [bytes([number]) * size for number, size in enumerate(sizes)]
    found = list(pieces(parts))
    assert b"".join(chain.from_iterable(found)) == b"".join(parts)
    assert all(sum(len(part) for part in piece) <= PIECE_BYTES for piece in found)
