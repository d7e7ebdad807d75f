"""What each Redis setup loses when its server crashes, as in `docs/redis.md`, on real servers."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from handlers.client.async_client import AsyncClient
from handlers.client.errors import BrokerUnreachable
from handlers.client.new_request import NewRequest
from handlers.client.options import ClientOptions
from handlers.redis_store.connection import durability_warnings
from handlers.redis_store.queue.queue import QueueOptions, RedisQueue
from tests.chaos.proxy import Proxy
from tests.servers.presence import redis_program
from tests.servers.redis_topologies import Server
from tests.servers.valkey import LONG_LIMIT
from tests.waiting import wait_until

QUEUE = "request-sortedset"
REQUESTS = 200
HOUR = timedelta(hours=1)


@pytest.fixture
def program() -> str:
    return redis_program()


@pytest.fixture
def server(program: str, request: pytest.FixtureRequest) -> Iterator[Server]:
    """With the options that a test names."""
    made = Server(program, *getattr(request, "param", ()))
    yield made
    made.stop()


async def submit(port: int, names: range, **options: Any) -> None:
    """As a client does; returns when all are acknowledged."""
    own = ClientOptions(queue=QUEUE, **options)
    async with AsyncClient.for_redis(f"redis://127.0.0.1:{port}", own, LONG_LIMIT) as client:
        await client.submit_many([NewRequest(id=f"r{n}", payload={}, deadline=HOUR) for n in names])


async def claimed(port: int) -> list[str]:
    """All claimable requests, in order."""
    async with Redis(port=port, socket_timeout=60, socket_connect_timeout=60) as redis:
        queue = RedisQueue(redis, QUEUE, QueueOptions("retries", "results"))
        return [claim.claim_key.split(b"\0")[0].decode() for claim in await queue.claim(2 * REQUESTS)]


@pytest.mark.parametrize("server", [("--appendonly", "no")], indirect=True)
async def test_f21_without_an_append_only_file_all_is_lost_and_the_start_warns(server: Server) -> None:
    async with Redis(port=server.port, socket_timeout=60, socket_connect_timeout=60) as redis:
        assert any("append-only" in warning for warning in await durability_warnings(redis))
    await submit(server.port, range(REQUESTS))
    server.kill()
    server.start()
    assert await claimed(server.port) == []


@pytest.mark.parametrize("server", [("--appendonly", "yes", "--appendfsync", "always")], indirect=True)
async def test_f20_with_every_write_synced_nothing_is_lost(server: Server) -> None:
    await submit(server.port, range(REQUESTS))
    server.kill()
    server.start()
    assert await claimed(server.port) == [f"r{n}" for n in range(REQUESTS)]


@pytest.mark.parametrize("server", [("--appendonly", "yes", "--appendfsync", "everysec")], indirect=True)
async def test_f22_with_a_sync_each_second_a_kill_loses_nothing_and_a_power_cut_loses_the_end(
    server: Server,
) -> None:
    """SIGKILL keeps the kernel's buffers; cutting the end of the file simulates a power failure.

    While a sync is in progress, the server keeps new writes to itself for up to two seconds; the test waits for that.
    """
    for name in range(REQUESTS):
        await submit(server.port, range(name, name + 1))
    with server.client() as client:
        wait_until(lambda: client.info("persistence")["aof_buffer_length"] == 0, "all writes in the file")
    server.kill()
    (log,) = Path(server.folder).glob("appendonlydir/*.incr.aof")
    server.start()
    with server.client() as client:
        assert client.zcard(QUEUE) == REQUESTS
    server.kill()
    with log.open("r+b") as file:
        file.truncate(log.stat().st_size * 3 // 4)
    server.start()
    left = await claimed(server.port)
    assert 0 < len(left) < REQUESTS
    assert left == [f"r{n}" for n in range(len(left))], "only the end, and what is left is served in order"


@pytest.fixture
def lagging(program: str) -> Iterator[tuple[Server, Server, Proxy]]:
    """A master, its replica, and the line between them."""
    master = Server(program, "--repl-diskless-sync-delay", "0")
    with Proxy(("127.0.0.1", master.port)) as line:
        replica = Server(program, "--replicaof", f"127.0.0.1 {line.port}")
        with replica.client() as client:
            wait_until(lambda: client.info("replication")["master_link_status"] == "up", "the replica")
        yield master, replica, line
        replica.stop()
    master.stop()


async def test_f23_a_lagging_replica_lacks_writes_that_only_the_master_acknowledged(
    lagging: tuple[Server, Server, Proxy],
) -> None:
    master, replica, line = lagging
    await submit(master.port, range(50), wait_replicas=1)
    line.is_black_hole = True
    await submit(master.port, range(50, 100))
    with pytest.raises(BrokerUnreachable, match="0 of 1 replica"):
        await submit(master.port, range(100, 101), wait_replicas=1, patience_seconds=1)
    master.kill()
    with replica.client() as client:
        client.replicaof("NO", "ONE")
    assert await claimed(replica.port) == [f"r{n}" for n in range(50)], "the replica serves the confirmed writes"
