"""Quotas, dead letters, sharing and the board work in a cluster and under Sentinels.

Both are also tested with TLS only, and with fewer connections than callers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec.structs import replace

from handlers.client.async_client import AsyncClient
from handlers.client.options import ClientOptions
from handlers.redis_store.admin.dead_letters import DeadLetters
from handlers.redis_store.admin.depths import queue_depths
from handlers.redis_store.admin.status_board import StatusBoard, read_board
from handlers.redis_store.cluster.queue import ClusterQueue
from handlers.redis_store.connection import STORE_FAILURES, RedisOptions, Store, connect
from handlers.redis_store.idempotency.idempotency import (
    AlreadyAnswered,
    DeliveryRecords,
    Fresh,
    IdRecord,
    RunState,
    finish_id_record,
    record_for_id,
)
from handlers.redis_store.limits.limits import HeldSlot, PoolIndex, RedisGateStore, RedisPoolSharing
from handlers.redis_store.opening import open_submissions
from handlers.redis_store.queue.queue import Ack, QueueOptions, RedisQueue
from handlers.redis_store.submit.submissions import MemberParts
from tests.servers.certificates import self_signed
from tests.servers.presence import redis_program
from tests.servers.redis_topologies import Cluster, Sentinels
from tests.servers.valkey import LONG_LIMIT

pytestmark = pytest.mark.xdist_group("redis-topologies")
CONNECTIONS = 4


@pytest.fixture(scope="module", params=["cluster", "cluster-tls", "sentinel", "sentinel-tls"])
def options(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisOptions]:
    kind, _, encrypted = request.param.partition("-")
    program = redis_program()
    pem = self_signed(tmp_path_factory.mktemp("tls")) if encrypted else None
    with ExitStack() as parts:
        if kind == "cluster":
            url = parts.enter_context(Cluster(program, tls=pem)).url
        else:
            url = parts.enter_context(Sentinels(program, tls=pem)).url()
        file = str(pem) if pem else ""
        yield RedisOptions(
            url,
            ca_file=file,
            cert_file=file,
            key_file=file,
            max_connections=CONNECTIONS,
            timeout_seconds=600,  # also of the wait for a connection, for which hundreds queue
            connect_timeout_seconds=60,
        )


@pytest.fixture
async def redis(options: RedisOptions) -> AsyncIterator[Store]:
    async with contextlib.aclosing(connect(options)) as opened:
        yield opened


@pytest.fixture
def name() -> str:
    return uuid.uuid4().hex


def queue_of(redis: Store, options: RedisOptions, name: str) -> RedisQueue:
    kind = ClusterQueue if options.is_cluster else RedisQueue
    return kind(redis, f"q-{name}", QueueOptions(f"r-{name}", f"l-{name}", cluster=options.is_cluster))


async def test_more_callers_than_connections_wait_for_their_turn(redis: Store, name: str) -> None:
    answers = await asyncio.gather(*(redis.set(f"{name}-{n}", n, ex=60) for n in range(100)))
    assert all(answers)
    marks = [IdRecord(f"{name}-{n}", "token", 1_800) for n in range(256)]
    until = time.time() + 1_800
    stand = await asyncio.gather(*(record_for_id(redis, mark, until) for mark in marks))
    assert set(stand) == {RunState.RUNS}
    await finish_id_record(redis, marks)
    other = [replace(mark, known_by="another") for mark in marks]
    assert {await record_for_id(redis, mark, until) for mark in other} == {RunState.FINISHED}


async def test_a_full_batch_with_idempotency_records_is_settled_at_once(
    redis: Store, options: RedisOptions, name: str
) -> None:
    queue = queue_of(redis, options, name)
    members = {json.dumps({"id": f"{name}-{n}", "payload": {}, "deadline": 1_999_999_999}): n for n in range(100)}
    await redis.zadd(queue.name, cast(Any, members))
    claims = await queue.claim(100)
    acks = [
        Ack(
            claim,
            b"result",
            f"l-{name}",
            None,
            claim.claim_key.decode(),
            "",
            id_record=IdRecord(claim.claim_key.decode(), "t", 1_800),
        )
        for claim in claims
    ]
    assert await queue.ack(acks) == [True] * 100
    assert await redis.llen(f"l-{name}") == 100


async def test_quotas_are_counted_and_returned(redis: Store, name: str) -> None:
    store = RedisGateStore(redis)
    slots = [HeldSlot(f"quota:userid:{name}", f"m{n}") for n in range(3)]
    terms = {"limit": 2, "lease_seconds": 1_800.0, "counter_seconds": 1_800.0}
    held = [await store.hold_slot(slot, "me", **terms) for slot in slots]  # type: ignore[arg-type]  # of several types
    assert held == [True, True, False]
    assert await store.free_slot(slots[0], "me", counter_seconds=1_800)
    assert await store.hold_slot(slots[2], "me", **terms)  # type: ignore[arg-type]  # of several types
    rate = {"limit": 1, "window_seconds": 1_800.0, "remember_seconds": 1_800.0}
    paid = [await store.pay_rate(f"quota:rate:{name}", f"m{n}", **rate) for n in range(2)]  # type: ignore[arg-type]  # of several types
    assert [may_go for may_go, _, _ in paid] == [True, False]


async def test_a_dead_letter_is_kept_shown_and_queued_again(redis: Store, options: RedisOptions, name: str) -> None:
    queue = queue_of(redis, options, name)
    body = json.dumps({"id": "a", "payload": {}, "deadline": 1_999_999_999}).encode()
    await redis.zadd(queue.name, cast(Any, {body: 1_999_999_999}))
    (claim,) = await queue.claim(1)
    record = json.dumps({"reason": "crashed", "queue": queue.name, "score": 1_999_999_999, "member": body.decode()})
    assert await queue.ack([Ack(claim, b"result", f"l-{name}", None, "a", "", dead=record.encode())]) == [True]

    letters = DeadLetters(redis, queue.name, cluster=options.is_cluster)
    (letter,) = [one async for one in letters.all()]
    assert (letter.reason, letter.member) == ("crashed", body)
    assert await letters.requeue(letter)
    assert await letters.count() == 0
    assert [again.member for again in await queue.claim(1)] == [body]


async def test_pollers_share_a_pool_and_report_to_the_board(redis: Store, options: RedisOptions, name: str) -> None:
    a, b = (RedisPoolSharing(redis, name, one, lease_seconds=1_800) for one in "ab")
    assert await a.share(5) == PoolIndex(0, 1, 0)
    assert await b.share(2) == PoolIndex(1, 2, 5)
    minute = int(time.time() // 60)
    await StatusBoard(redis, name).post(b"{}", minute, {"answered": 3}, [b'{"id":"x"}'])
    board = await read_board(redis, minute)
    assert name in board.pollers
    await redis.zadd(f"q-{name}", cast(Any, {b"m": 1}))
    depths = await queue_depths(redis, f"q-{name}", f"r-{name}", cluster=options.is_cluster)
    assert (depths.pending, depths.claimed, depths.retrying) == (1, 0, 0)


async def test_an_answered_delivery_is_recorded(redis: Store, name: str) -> None:
    records = DeliveryRecords(redis)
    key = f"delivery:{name}"
    assert await records.begin(key, "me") == Fresh()
    assert await records.finish(key, "me", b"7")
    assert await records.begin(key, "you") == AlreadyAnswered(b"7")


async def test_a_submission_that_is_sent_again_after_its_answer_leaves_nothing(
    redis: Store, options: RedisOptions, name: str
) -> None:
    submissions = open_submissions(redis)
    head, tail = b'{"internal":{"request_token":"t-', b'},"data":{}}'
    parts = [MemberParts(f"{name}-{n}", int(time.time()) + 1_800, f"t{n}", head, tail) for n in range(3)]
    first = await submissions.submit(f"q-{name}", parts)
    await redis.delete(f"q-{name}")
    for part in parts:
        await redis.delete(f"request-active:{part.id}")  # as with final results

    assert await submissions.submit(f"q-{name}", parts, is_repeated=True) == first

    assert await redis.zcard(f"q-{name}") == 0
    assert [await redis.exists(f"request-active:{part.id}") for part in parts] == [0, 0, 0]


async def test_with_tls_plain_connections_and_other_cas_fail(options: RedisOptions, tmp_path: Path) -> None:
    if not options.ca_file:
        async with AsyncClient.for_redis(options.url, ClientOptions(), LONG_LIMIT) as client:
            assert str(await client.look_up("nobody")) == "unknown"
        return
    other = str(self_signed(tmp_path, "127.0.0.3"))
    for wrong in (
        replace(options, url=options.url.replace("rediss+", "redis+")),
        replace(options, ca_file=other),
    ):
        async with contextlib.aclosing(connect(replace(wrong, timeout_seconds=2))) as redis:
            with pytest.raises(STORE_FAILURES):
                await redis.ping()
