"""A Redis Cluster of three masters with replicas: steps cross slots, nothing is lost or duplicated."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from typing import Any, TypeVar, cast

import pytest
from redis.asyncio.cluster import RedisCluster

from handlers.client.async_client import AsyncClient
from handlers.client.new_request import NewRequest
from handlers.client.options import ClientOptions
from handlers.contract.errors import InvalidSetting
from handlers.redis_store.admin.acl import refused_commands
from handlers.redis_store.cluster import queue as cluster_queue
from handlers.redis_store.cluster.queue import ClusterQueue, ClusterRetries
from handlers.redis_store.connection import (
    STORE_FAILURES,
    NotReplicated,
    RedisOptions,
    Store,
    connect,
    executed,
    server_time,
)
from handlers.redis_store.idempotency.idempotency import DedupOptions, DeliveryRecords, Fresh, InProgress
from handlers.redis_store.keys import queue_keys, sent_key
from handlers.redis_store.limits.limits import RedisGateStore
from handlers.redis_store.opening import open_submissions
from handlers.redis_store.queue.cancellations import SWEPT, Cancellations, ForeignCancellations
from handlers.redis_store.queue.queue import Ack, Claim, Nack, QueueOptions
from handlers.redis_store.submit.submissions import MemberParts, RequestState
from tests.redis_store.queue.queueing import DEADLINE, body, envelope, recalled, recalled_retries
from tests.servers.presence import redis_program
from tests.servers.redis_topologies import QUICK_MS, Cluster, Server
from tests.servers.valkey import LONG_LIMIT
from tests.waiting import CLOCK_SET_SECONDS, wait_until_async

pytestmark = pytest.mark.xdist_group("redis-cluster")

REQUESTS = 400
T = TypeVar("T")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    program = redis_program()
    with Cluster(program, replicas=1, node_timeout_ms=QUICK_MS) as running:
        yield running


class ClusterBench:
    """A queue of a test's own; its retry set and result list are in slots of other masters."""

    def __init__(self, cluster: Cluster) -> None:
        self.url = cluster.url
        self.redis = cast(
            "RedisCluster", connect(RedisOptions(cluster.url, timeout_seconds=60, connect_timeout_seconds=60))
        )
        self.name = uuid.uuid4().hex
        self.requests, self.retries, self.results = (f"{kind}-{self.name}" for kind in ("q", "r", "l"))
        self.options = QueueOptions(self.retries, self.results, lease_seconds=1_800, cluster=True)
        self.queue = ClusterQueue(self.redis, self.requests, self.options)
        self.sources = ClusterRetries(self.redis, self.retries, self.requests)
        self.keys = queue_keys(self.requests, cluster=True)

    def with_wait(self) -> None:
        """Settle with `WAIT 1` from now on; a claim with a lost reply returns after five seconds."""
        self.options = QueueOptions(
            self.retries, self.results, lease_seconds=5, cluster=True, wait_replicas=1, wait_timeout_ms=2_000
        )
        self.queue = ClusterQueue(self.redis, self.requests, self.options)

    async def claimed(self, member: bytes) -> Claim:
        await self.redis.zadd(self.requests, {member: DEADLINE})
        return (await self.queue.claim(1))[0]

    def ack_of(self, claim: Claim, result: bytes = b"result", **fields: object) -> Ack:
        given = {
            "result_queue_name": self.results,
            "result_ttl_seconds": None,
            "request_id": "r",
            "request_token": "",
            **fields,
        }
        return Ack(claim, result, **given)  # type: ignore[arg-type]  # the fields a test names

    async def result_texts(self) -> list[bytes]:
        return cast("list[bytes]", await self.redis.lrange(self.results, 0, -1))

    def client(self, **options: object) -> AsyncClient:
        given = ClientOptions(queue=self.requests, results=self.results, **options)  # type: ignore[arg-type]  # as a test names them
        return AsyncClient.for_redis(self.url, given, access=LONG_LIMIT)

    async def make_overdue(self) -> None:
        """Make the records in the outboxes overdue."""
        for home in (self.requests, self.retries):
            index = f"{{{home}}}:outbox-idx"
            for post_id in cast("list[bytes]", await self.redis.zrange(index, 0, -1)):
                await self.redis.zadd(index, {post_id: 1})


@pytest.fixture
async def bench(cluster: Cluster) -> AsyncIterator[ClusterBench]:
    made = ClusterBench(cluster)
    yield made
    await made.redis.aclose()


async def test_an_ack_crosses_slots_and_leaves_nothing(bench: ClusterBench) -> None:
    claim = await bench.claimed(envelope("a", "t"))
    active, cancel, payload = "request-active:a", "request-cancel:a", "request-payload:a:t"
    for key in (active, payload):
        await bench.redis.set(key, "t")
    await bench.redis.set(cancel, "another submission's")
    ack = bench.ack_of(claim, request_id="a", request_token="t", payload_ref=payload, result_ttl_seconds=500)
    assert await bench.queue.ack([ack]) == [True]
    assert await bench.result_texts() == [b"result"]
    assert 0 < await bench.redis.ttl(bench.results) <= 500
    assert [await bench.redis.exists(key) for key in (active, payload, cancel)] == [0, 0, 1]
    outbox = (f"{{{bench.requests}}}:outbox", f"{{{bench.requests}}}:outbox-idx")
    gone = (bench.requests, bench.keys.claimed, bench.keys.owners, bench.keys.index, *outbox)
    assert [await bench.redis.exists(key) for key in gone] == [0] * len(gone)
    await bench.redis.delete(cancel)


async def test_an_ack_sent_twice_has_one_result_and_a_stale_owners_none(bench: ClusterBench) -> None:
    claim = await bench.claimed(body("a"))
    assert await bench.queue.ack([bench.ack_of(claim)]) == [True]
    assert await bench.queue.ack([bench.ack_of(claim)]) == [True]
    stale = Claim(claim.queue, claim.member, claim.score, claim.claim_key, b"another:1:s=1")
    assert await bench.queue.ack([bench.ack_of(stale, b"stale")]) == [False]
    assert await bench.result_texts() == [b"result"]


@pytest.mark.parametrize("dies_before", ["delivery", "forgetting", "removal"])
async def test_the_outbox_of_a_crashed_poller_is_delivered_once_by_another_poller(
    bench: ClusterBench, monkeypatch: pytest.MonkeyPatch, dies_before: str
) -> None:
    method = {"delivery": "_delivered", "forgetting": "_forget", "removal": "_remove"}[dies_before]
    claim = await bench.claimed(envelope("d", "t"))
    await bench.redis.set("request-active:d", "t")

    async def dies(*_arguments: object) -> None:
        raise ConnectionResetError

    with monkeypatch.context() as patch:
        patch.setattr(cluster_queue.Outbox, method, dies)
        with pytest.raises(ConnectionResetError):
            await bench.queue.ack([bench.ack_of(claim, request_id="d", request_token="t")])
    assert not await bench.redis.exists(bench.keys.claimed), "no poller may run it again"
    other = ClusterQueue(bench.redis, bench.requests, bench.options)
    await other.reclaim(100, 5)
    await bench.make_overdue()
    await other.reclaim(100, 5)
    assert await bench.result_texts() == [b"result"]
    assert not await bench.redis.exists("request-active:d")
    assert not await bench.redis.exists(f"{{{bench.requests}}}:outbox")


async def test_a_result_for_a_key_of_another_type_goes_to_the_default_list(bench: ClusterBench) -> None:
    claim = await bench.claimed(body("a"))
    await bench.redis.set(f"text-{bench.name}", "x")
    assert await bench.queue.ack([bench.ack_of(claim, result_queue_name=f"text-{bench.name}")]) == [True]
    assert await bench.result_texts() == [b"result"]


async def test_a_retry_waits_in_another_slot_and_returns_once_with_its_score(
    bench: ClusterBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = envelope("a", "t", request_queue_name=bench.requests)
    claim = await bench.claimed(member)
    before = await server_time(bench.redis)
    assert await bench.queue.nack([Nack(claim, member, 600.0)]) == [True]
    after = await server_time(bench.redis)
    rows: Any = await bench.redis.zrange(bench.retries, 0, -1, withscores=True)
    ((_, due),) = rows
    assert before + 600 - CLOCK_SET_SECONDS <= due <= after + 600 + CLOCK_SET_SECONDS
    assert await bench.sources.promote(10) == 0
    await bench.redis.zadd(bench.retries, {member: 1})

    async def dies(redis: Store, pipeline: Any, *, raise_on_error: bool = True) -> list[Any]:
        if raise_on_error:
            raise ConnectionResetError  # before the delivered record is removed
        return await executed(redis, pipeline, raise_on_error=False)

    with monkeypatch.context() as patch:
        patch.setattr(cluster_queue, "executed", dies)
        with pytest.raises(ConnectionResetError):
            await bench.sources.promote(10)
    (again,) = await bench.queue.claim(10)
    assert (again.member, again.score) == (member, DEADLINE)
    await bench.make_overdue()
    assert await bench.sources.promote(10) == 0
    assert await bench.queue.claim(10) == [], "it was delivered already"


async def test_a_cancelled_pending_or_retried_request_is_claimed_by_its_claim_key(bench: ClusterBench) -> None:
    async with bench.client() as client:
        now = time.time()
        requests = [NewRequest(id=f"{bench.name}-{n}", payload={"n": n}, deadline=now + 600 + n) for n in range(3)]
        sent = await client.submit_many(requests)
        claims = await bench.queue.claim(1)
        await bench.queue.nack([Nack(claims[0], claims[0].member, 300.0)])
        assert await client.look_up(sent[0]) is RequestState.RETRYING
        assert await client.look_up(sent[2]) is RequestState.PENDING
        assert await client.cancel_many([sent[0], sent[2]]) == [True, True]
        assert await client.look_up(sent[2]) is RequestState.CANCELLING
    (waiting,) = await recalled(bench.redis, bench.queue)
    assert await recalled_retries(bench.redis, bench.sources) == 1
    assert await recalled_retries(bench.redis, bench.sources) == 0
    (retried,) = await recalled(bench.redis, ClusterQueue(bench.redis, bench.requests, bench.options))
    assert waiting.is_cancelled and retried.is_cancelled
    assert [one.claim_key.split(b"\0")[0].decode() for one in (waiting, retried)] == [sent[2].id, sent[0].id]


async def test_cancellations_of_other_producers_are_found_on_every_master(bench: ClusterBench) -> None:
    ids = [f"{bench.name}-{n}" for n in range(20)]
    for request_id in ids:
        await bench.redis.set(f"request-active:{request_id}", "5f2c", px=600_000)
        await bench.redis.set(f"request-cancel:{request_id}", "5f2c", ex=600)
    await bench.redis.delete(SWEPT)

    await ForeignCancellations(bench.redis).sweep()

    reported = {one.key.split(b"\0")[0].decode() for one in await Cancellations(bench.redis).due()}
    assert set(ids) <= reported


async def test_a_request_whose_id_is_no_text_is_claimed_as_any_other(bench: ClusterBench) -> None:
    """The cancellation is looked up by the bytes of the id; an error here would end the poller."""
    (claim,) = [await bench.claimed(b'{"internal":{"request_token":"t"},"data":{"id":"\xff","deadline":5}}')]
    assert claim.claim_key == b"\xff\0t"
    assert await bench.queue.cancelled([claim]) == []


async def test_the_client_submits_once_and_reads_under_a_lease(bench: ClusterBench) -> None:
    async with bench.client(payload_apart_bytes=100) as client:
        deadline = time.time() + 600
        large = NewRequest(id=f"{bench.name}-large", payload={"text": "x" * 200}, deadline=deadline)
        (sent,) = await client.submit_many([large])
        (claim,) = await bench.queue.claim(10)
        internal = json.loads(claim.member)["internal"]
        payload: Any = await bench.redis.get(internal["payload_ref"])
        assert b"x" * 200 in payload
        assert internal["request_token"] == sent.token
        assert await client.look_up(sent) is RequestState.CLAIMED
        result = json.dumps({"id": sent.id, "status_code": 200, "payload": "{}", "request_token": sent.token})
        await bench.queue.ack([bench.ack_of(claim, result.encode(), request_id=sent.id, request_token=sent.token)])
        assert await client.look_up(sent) is RequestState.FINISHED
        async with asyncio.timeout(60), client.results(limit=1) as results:
            async for found in results:
                assert found.result.id == sent.id
                await found.ack()
    assert await bench.result_texts() == []


async def test_submissions_that_share_a_token_as_a_batchs_do_are_all_queued_and_each_once(
    bench: ClusterBench,
) -> None:
    submissions = open_submissions(bench.redis)
    head, tail = b'{"internal":{"request_token":"shared-', b'},"data":{}}'
    parts = [MemberParts(f"{bench.name}-{n}", int(time.time()) + 600, "shared", head, tail) for n in range(3)]
    first = await submissions.submit(bench.requests, parts[:2])
    assert await submissions.submit(bench.requests, parts[:2], is_repeated=True) == first
    await bench.redis.delete(sent_key([(part.id, part.token) for part in parts[:2]]))
    assert await submissions.submit(bench.requests, parts[:2], is_repeated=True) == first
    await submissions.submit(bench.requests, parts[2:])
    assert await bench.redis.zcard(bench.requests) == 3


async def test_rights_are_checked_slot_by_slot(bench: ClusterBench) -> None:
    assert await refused_commands(bench.redis, bench.requests, bench.retries, bench.results, cluster=True) == []


async def test_a_master_dies_under_load_and_nothing_that_was_acknowledged_is_lost(
    cluster: Cluster, bench: ClusterBench
) -> None:
    """With `WAIT 1`, every confirmed settlement holds, and each result exists once. Without it, a master that crashes
    loses what it had not sent to its replica.
    """
    bench.with_wait()
    for number in range(REQUESTS):
        await bench.redis.zadd(bench.requests, {body(f"f{number}"): DEADLINE})
    await bench.queue.claim(0)
    await _replicated(bench)
    dead = cluster.master_of(bench.results)
    assert dead
    dies_at, acked = REQUESTS // 4, list[str]()

    async def claimed() -> list[Claim]:
        """Some claims, or none yet: claims whose reply was lost with the master return with their lease."""
        await bench.queue.reclaim(REQUESTS, REQUESTS)
        return await bench.queue.claim(20)

    while len(acked) < REQUESTS:
        claims = await _retried(lambda: bench.queue.claim(20)) or await _retried(claimed, bool)
        rows = [bench.ack_of(claim, claim.claim_key, request_id=claim.claim_key.decode()) for claim in claims]
        effects = await _retried(partial(_ack, bench, dead, rows))
        acked += [row.request_id for row, effect in zip(rows, effects, strict=True) if effect]
        if dies_at <= len(acked) < dies_at + 20:
            asyncio.get_running_loop().call_later(0.002, dead.kill)
    found = Counter(text.decode() for text in await bench.result_texts())
    assert found == Counter(acked) == Counter(f"f{number}" for number in range(REQUESTS))
    assert cluster.master_of(bench.results) not in (None, dead)


async def _ack(bench: ClusterBench, dies: Server, rows: list[Ack]) -> list[bool]:
    """Ack with `WAIT 1`; without it if a slot's new master has no replica. Repeats the same rows."""
    try:
        return await bench.queue.ack(rows)
    except NotReplicated:
        if not dies.is_dead:
            raise
        options = QueueOptions(bench.retries, bench.results, cluster=True)
        bench.queue = ClusterQueue(bench.redis, bench.requests, options)
        raise


async def _retried(call: Callable[[], Awaitable[T]], is_enough: Callable[[T], bool] = lambda _: True) -> T:
    """Call until it answers, as pool and settler do."""
    answers: list[T] = []

    async def answered() -> bool:
        try:
            answers.append(await call())
        except STORE_FAILURES:
            return False
        return is_enough(answers[-1])

    await wait_until_async(answered, "the cluster to answer again")
    return answers[-1]


async def _replicated(bench: ClusterBench) -> None:
    """Wait until the queue's master has its replica's word for all that was queued."""
    node = bench.redis.get_node_from_key(bench.requests)
    assert await bench.redis.execute_command("WAIT", 1, 55_000, target_nodes=node) == 1


async def test_a_leased_rate_in_two_slots_stops_the_start_and_quotas_and_deliveries_work(
    bench: ClusterBench,
) -> None:
    store = RedisGateStore(bench.redis)
    with pytest.raises(InvalidSetting, match="hash tag"):
        store.check_lease_keys("control", "control:state")
    store.check_lease_keys("{rates}", "{rates}:state")
    assert not (await store.take_token("{rates}", "{rates}:state", "p", burst_seconds=1)).is_valid
    key = f"quota:userid:{bench.name}"
    paid = [await store.pay_rate(key, f"m{n}", limit=1, window_seconds=60, remember_seconds=60) for n in range(2)]
    assert [may_go for may_go, _, _ in paid] == [True, False]
    records = DeliveryRecords(bench.redis, DedupOptions(lease_seconds=1_800))
    assert await records.begin(f"delivery:{bench.name}", "a") == Fresh()
    assert isinstance(await records.begin(f"delivery:{bench.name}", "b"), InProgress)
