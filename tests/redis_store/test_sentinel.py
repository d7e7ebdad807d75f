"""A real Sentinel trio with passwords: the master dies under load, and both ends follow without a restart."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import TypeVar

import pytest
from msgspec.structs import replace

from handlers.client.async_client import AsyncClient
from handlers.client.broker import Submission
from handlers.client.errors import BrokerUnreachable
from handlers.client.new_request import NewRequest
from handlers.client.options import ClientOptions
from handlers.redis_store.connection import STORE_FAILURES, NotReplicated, RedisOptions, Store, connect
from handlers.redis_store.queue.queue import Ack, Claim, QueueOptions, RedisQueue
from tests.servers.presence import redis_program
from tests.servers.redis_topologies import QUICK_MS, Sentinels
from tests.servers.valkey import LONG_LIMIT
from tests.waiting import wait_until_async

pytestmark = pytest.mark.xdist_group("redis-sentinel")

REQUESTS = 400
BATCH = 20
T = TypeVar("T")
RETRIES, RESULTS = "retries", "results"
OPTIONS = QueueOptions(RETRIES, RESULTS, lease_seconds=5, wait_replicas=1, wait_timeout_ms=2_000)
FAILURES = (*STORE_FAILURES, BrokerUnreachable)


@pytest.fixture(scope="module")
def sentinels() -> Iterator[Sentinels]:
    program = redis_program()
    with Sentinels(program, password="p@ss/word", sentinel_password="watch", down_after_ms=QUICK_MS) as running:
        yield running


async def test_a_master_dies_under_load_and_nothing_that_was_acknowledged_is_lost(
    sentinels: Sentinels,
) -> None:
    """With `WAIT 1`, every confirmed settlement holds. Without it, a master loses what its replica does not have.
    Only the master acknowledges the client's submissions. Here acks with `WAIT 1` follow them, and replication
    keeps the order, so the replica has them before the master crashes.
    """
    url = sentinels.url(user=":p%40ss%2Fword@")
    async with (
        contextlib.aclosing(connect(RedisOptions(url, timeout_seconds=5))) as redis,
        AsyncClient.for_redis(url, ClientOptions(queue="requests", results=RESULTS), LONG_LIMIT) as client,
    ):
        worker = _Worker(redis, sentinels)
        now = time.time()
        requests = [NewRequest(id=f"s{n}", payload={"n": n}, deadline=now + 600) for n in range(REQUESTS)]
        await client.submit_many(requests)

        done: list[str] = []
        while len(done) < REQUESTS:
            claims = await _retried(worker.claim, bool)
            rows = [_ack_of(claim) for claim in claims]
            effects = await _retried(partial(worker.ack, rows))
            done += [row.request_id for row, effect in zip(rows, effects, strict=True) if effect]
            if REQUESTS // 4 <= len(done) < REQUESTS // 4 + BATCH:
                asyncio.get_running_loop().call_later(0.002, sentinels.master.kill)

        texts: list[bytes | str] = await _retried(lambda: redis.lrange(RESULTS, 0, -1))
        found = Counter(text.split(b"\0")[0].decode() for text in texts if isinstance(text, bytes))
        assert found == Counter(done) == Counter(f"s{n}" for n in range(REQUESTS))

        sent: Submission = await _retried(lambda: client.submit({"n": 0}, deadline=now + 600))
        (after,) = await _retried(worker.claim, bool)
        assert after.claim_key.startswith(sent.id.encode())
    assert sentinels.replica.client(password="p@ss/word").info("replication")["role"] == "master"


class _Worker:
    """Claim and settle with `WAIT 1`; without it once the new master has no replica."""

    def __init__(self, redis: Store, sentinels: Sentinels) -> None:
        self._redis = redis
        self._sentinels = sentinels
        self._queue = RedisQueue(redis, "requests", OPTIONS)

    async def ack(self, rows: list[Ack]) -> list[bool]:
        try:
            return await self._queue.ack(rows)
        except NotReplicated:
            if self._sentinels.master.is_dead:
                self._queue = RedisQueue(self._redis, "requests", replace(OPTIONS, wait_replicas=0))
            raise

    async def claim(self) -> list[Claim]:
        """Some claims, or none yet: claims whose reply was lost with the master return with their lease."""
        claims = await self._queue.claim(BATCH)
        if not claims:
            await self._queue.reclaim(REQUESTS, REQUESTS)
        return claims


def _ack_of(claim: Claim) -> Ack:
    request_id, token = claim.claim_key.decode().split("\0")
    return Ack(claim, claim.claim_key, RESULTS, None, request_id, token)


async def _retried(call: Callable[[], Awaitable[T]], is_enough: Callable[[T], bool] = lambda _: True) -> T:
    """Call until it answers, as pool, settler and a client's caller do."""
    answers: list[T] = []

    async def answered() -> bool:
        try:
            answers.append(await call())
        except FAILURES:
            return False
        return is_enough(answers[-1])

    await wait_until_async(answered, "the new master to answer")
    return answers[-1]
