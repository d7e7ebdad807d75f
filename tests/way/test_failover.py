"""Failovers under load: pollers, gateway and client continue, and each request is answered once."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from handlers.client.async_client import AsyncClient
from handlers.client.new_request import NewRequest
from handlers.client.options import ClientOptions
from handlers.redis_store.connection import STORE_FAILURES, RedisOptions, connect
from tests.servers.presence import program_path, valkey_program
from tests.servers.redis_topologies import QUICK_MS, Cluster, Sentinels, Server
from tests.waiting import wait_until_async
from tests.way.poller_fleet import PollerFleet

QUEUE, RESULTS = "request-sortedset", "result-list"
BEFORE, DURING = 240, 60
_PASSING = re.compile(rb".*:(settled|status|delivered)[:}]?|request-sent:|request-seq:")


@pytest.fixture(scope="module", params=["redis", "valkey"])
def sentinels(request: pytest.FixtureRequest) -> Iterator[Sentinels]:
    chosen = program_path("redis-server") if request.param == "redis" else valkey_program()
    with Sentinels(chosen, down_after_ms=QUICK_MS) as running:
        yield running


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(valkey_program(), replicas=1, node_timeout_ms=QUICK_MS) as running:
        yield running


async def _fail_over(url: str, dies: Server, is_promoted: Callable[[], bool]) -> None:
    """Submit, kill under load, submit more, start it again: each request has one result, no key is left."""
    options = ClientOptions(queue=QUEUE, results=RESULTS, wait_replicas=1, patience_seconds=60)
    deadline = time.time() + 600
    with PollerFleet({"REDIS_URL": url, "WAIT_REPLICAS": "1"}) as fleet:
        async with AsyncClient.for_redis(url, options) as client:
            requests = [NewRequest(id=f"f{n}", payload={"n": n}, deadline=deadline) for n in range(BEFORE + DURING)]
            await client.submit_many(requests[:BEFORE])
            reader = _Reader(url)
            try:
                await wait_until_async(lambda: reader.count(BEFORE // 5), "work in flight")
                dies.kill()
                going_on = asyncio.create_task(client.submit_many(requests[BEFORE:]))
                await wait_until_async(lambda: asyncio.to_thread(is_promoted), "another master")
                dies.start()
                accepted = await going_on
                assert len(accepted) == DURING
                await wait_until_async(lambda: reader.count(len(requests)), "a result for each", timeout_seconds=90)
                await wait_until_async(reader.is_clean, "no key left")
                await wait_until_async(lambda: asyncio.to_thread(fleet.are_ready), "ready, without a restart")
                found = await wait_until_async(reader.ids, "the ids of all results")
            finally:
                await reader.close()
    assert found == Counter(request.id for request in requests)


class _Reader:
    """Reads the results and keys from the current master."""

    def __init__(self, url: str) -> None:
        self._redis = cast(Any, connect(RedisOptions(url)))

    async def count(self, least: int) -> bool:
        try:
            return bool(await self._redis.llen(RESULTS) >= least)
        except STORE_FAILURES:
            return False

    async def ids(self) -> Counter[str]:
        """The ids of the results; none while Redis does not answer."""
        try:
            return Counter(json.loads(text)["id"] for text in await self._redis.lrange(RESULTS, 0, -1))
        except STORE_FAILURES:
            return Counter()

    async def is_clean(self) -> bool:
        try:
            keys = {key async for key in self._redis.scan_iter(count=1_000)}
        except STORE_FAILURES:
            return False
        return {key for key in keys if not _PASSING.match(key)} == {RESULTS.encode()}

    async def close(self) -> None:
        await self._redis.aclose()


@pytest.mark.xdist_group("failover-sentinel")
@pytest.mark.timeout(600)
async def test_f23_a_master_under_sentinels_dies_and_everything_accepted_is_answered_once(
    sentinels: Sentinels,
) -> None:
    def is_promoted() -> bool:
        with sentinels.replica.client() as client:
            return bool(client.info("replication")["role"] == "master")

    await _fail_over(sentinels.url(), sentinels.master, is_promoted)


@pytest.mark.xdist_group("failover-cluster")
@pytest.mark.timeout(600)
async def test_f23_the_master_of_a_clusters_queue_dies_and_everything_accepted_is_answered_once(
    cluster: Cluster,
) -> None:
    master = cluster.master_of(QUEUE)
    assert master is not None
    await _fail_over(cluster.url, master, lambda: cluster.master_of(QUEUE) not in (None, master))
