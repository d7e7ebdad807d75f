"""A slot moves, also to a node that was added: clients and pollers continue, and nothing is lost or duplicated."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from typing import cast

import pytest

from handlers.client.async_client import AsyncClient
from handlers.client.options import ClientOptions
from handlers.redis_store.cluster.queue import ClusterQueue
from handlers.redis_store.connection import STORE_FAILURES, Store, connect
from handlers.redis_store.queue.queue import Ack, Claim, QueueOptions
from tests.servers.presence import redis_program
from tests.servers.redis_topologies import Cluster, Server
from tests.servers.valkey import LONG_LIMIT, long_limits
from tests.waiting import elapse_async, wait_until_async

pytestmark = pytest.mark.xdist_group("redis-resharding")
QUEUE, RETRIES, RESULTS = "moving-requests", "moving-retries", "moving-results"
OPTIONS = QueueOptions(RETRIES, RESULTS, lease_seconds=1_800, cluster=True)
HALF_MOVED_SECONDS = 1.5


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    program = redis_program()
    with Cluster(program) as running:
        yield running


class Move:
    """The queue's slot on its way from its master to another one."""

    def __init__(self, cluster: Cluster, target: Server) -> None:
        source = cluster.master_of(QUEUE)
        assert source
        self._clients = [server.client() for server in cluster.servers]
        self._source, self._target, self._port = source.client(), target.client(), target.port
        self._slot = self._source.execute_command("CLUSTER KEYSLOT", QUEUE)
        self._target_id = self._target.execute_command("CLUSTER MYID")
        source_id = self._source.execute_command("CLUSTER MYID")
        self._target.execute_command("CLUSTER SETSLOT", self._slot, "IMPORTING", source_id)
        self._source.execute_command("CLUSTER SETSLOT", self._slot, "MIGRATING", self._target_id)

    def keys(self) -> list[bytes]:
        """Those that have not moved yet."""
        return cast("list[bytes]", self._source.execute_command("CLUSTER GETKEYSINSLOT", self._slot, 1_000))

    def take(self, *keys: bytes) -> None:
        """Move these."""
        arguments = ["127.0.0.1", self._port, "", 0, 50_000, "KEYS", *keys]
        self._source.execute_command("MIGRATE", *arguments)

    def finish(self) -> None:
        """Move the rest, and notify all nodes."""
        while left := self.keys():
            self.take(*left)
        for client in (self._target, self._source, *self._clients):
            client.execute_command("CLUSTER SETSLOT", self._slot, "NODE", self._target_id)


class Fleet:
    """One producer and one poller's queue, at work until they are stopped."""

    def __init__(self, redis: Store, client: AsyncClient) -> None:
        self._redis = redis
        self._client = client
        self._queue = ClusterQueue(redis, QUEUE, OPTIONS)
        self._is_stopping = False
        self._has_submitted_all = False
        self.sent: list[str] = []
        self.answered = 0

    def stop(self) -> None:
        """Submit no more; answer the remaining requests."""
        self._is_stopping = True

    async def run(self) -> None:
        """Until stopped and all is answered."""
        await asyncio.gather(self._produce(), self._answer())

    async def _produce(self) -> None:
        while not self._is_stopping:
            self.sent.append((await self._client.submit({"n": 1}, deadline=time.time() + 600)).id)
        self._has_submitted_all = True

    async def _answer(self) -> None:
        while not self._has_submitted_all or self.answered < len(self.sent):
            with contextlib.suppress(*STORE_FAILURES):
                rows = [_ack_of(claim) for claim in await self._queue.claim(20)]
                while True:
                    with contextlib.suppress(*STORE_FAILURES):
                        self.answered += sum(await self._queue.ack(rows))
                        break


def _ack_of(claim: Claim) -> Ack:
    request_id, token = claim.claim_key.decode().split("\0")
    return Ack(claim, request_id.encode(), RESULTS, None, request_id, token)


@pytest.mark.parametrize("window_seconds", [0, 60])
async def test_a_slot_that_moves_to_a_new_node_stops_no_poller(cluster: Cluster, window_seconds: int) -> None:
    options = ClientOptions(
        queue=QUEUE, results=RESULTS, idempotent_window_seconds=window_seconds, patience_seconds=100
    )
    async with (
        contextlib.aclosing(connect(long_limits(cluster.url))) as redis,
        AsyncClient.for_redis(cluster.url, options, access=LONG_LIMIT) as client,
    ):
        fleet = Fleet(redis, client)
        working = asyncio.create_task(fleet.run())
        await wait_until_async(lambda: _is_over(fleet, 20), "work in flight")
        move = Move(cluster, await asyncio.to_thread(cluster.add))
        # Of two keys that one script needs, one has moved: no node can run it until the other has.
        await asyncio.to_thread(move.take, f"{{{QUEUE}}}:delivered".encode())
        await elapse_async(HALF_MOVED_SECONDS, "the library alone would have stopped retrying")
        assert not working.done(), "the producer gave up"
        await asyncio.to_thread(move.finish)
        before = fleet.answered
        await wait_until_async(lambda: _is_over(fleet, before + 20), "work on the new node")
        fleet.stop()
        await working
        results = [text.decode() for text in cast("list[bytes]", await redis.lrange(RESULTS, 0, -1))]
        assert Counter(results) == Counter(fleet.sent)
        assert cluster.master_of(QUEUE) is cluster.servers[-1]


async def _is_over(fleet: Fleet, count: int) -> bool:
    return fleet.answered > count
