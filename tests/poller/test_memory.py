"""A poller and a handler stay within their memory with large requests and answers, each sent once.

The limit is the kernel's (`RLIMIT_AS`): a process that holds too much cannot allocate, and ends. `make chaos` runs 64
requests of 9.9 MB and 256 answers of 7.9 MB (`tests/chaos/loads.py`).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis.asyncio import Redis

from handlers.settings.environment import Environment
from tests.poller.limited import check_each_is_inferred_once, limited_poller, queue_requests, results_of
from tests.servers.presence import redis_program
from tests.servers.raw_http import answer, running_raw_http
from tests.servers.redis_topologies import Server


@pytest.fixture(scope="module")
def valkey() -> Iterator[Server]:
    """A server without an append-only file, which would get each large body several times."""
    server = Server(redis_program())
    yield server
    server.stop()


@pytest.mark.parametrize(
    ("count", "request_bytes", "body"),
    [(24, 9_900_000, b"{}"), (40, 10, b"y" * 7_900_000)],
    ids=["large requests", "large answers"],
)
@pytest.mark.parametrize("has_handler", [False, True], ids=["in process", "with a handler"])
async def test_large_bodies_fit_into_the_memory_limit_and_each_runs_once(
    valkey: Server, store: Redis, *, count: int, request_bytes: int, body: bytes, has_handler: bool
) -> None:
    await check_each_is_inferred_once(valkey.url, store, count, request_bytes, body, has_handler=has_handler)


@pytest.mark.parametrize("has_handler", [False, True])
@pytest.mark.parametrize("byte", [b"\x01", b"\xff"])
async def test_the_largest_answer_of_any_bytes_passes(
    valkey: Server, store: Redis, byte: bytes, has_handler: bool
) -> None:
    """In JSON a control character takes six bytes, and U+FFFD, in place of a byte that is not UTF-8, three."""
    body = byte * Environment().max_response_bytes
    await queue_requests(store, 1, 10)
    async with running_raw_http() as gateway:
        gateway.reply(answer(200, body))
        async with limited_poller(valkey.url, gateway.url, has_handler=has_handler, is_limited=False) as poller:
            (result,) = await results_of(store, poller, 1)
        assert (result["status_code"], len(gateway.received)) == (200, 1)
        assert result["payload"] == body.decode("utf-8", "replace")
