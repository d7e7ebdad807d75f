"""No reply and no command carries more than its bound and one item, however many large items wait."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from random import Random
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as LostConnection

from handlers.batch.files import BatchState
from handlers.batch.queue import BatchQueue
from handlers.client import AsyncClient, ClientOptions, Submission
from handlers.client.redis_broker import RedisResults
from handlers.contract.result import Result, answered_result, encode_result
from handlers.demo.valkey import Valkey
from handlers.poller.ack_batcher import AckBatcher, Release, Settlement
from handlers.redis_store.admin.dead_letters import DeadLetters
from handlers.redis_store.admin.status_board import PART_BYTES, read_part, sample_members, search
from handlers.redis_store.admin.whereabouts import Searched, locate
from handlers.redis_store.cluster.queue import ClusterQueue, ClusterRetries
from handlers.redis_store.cluster.submissions import ClusterSubmissions
from handlers.redis_store.keys import beside, result_of_key
from handlers.redis_store.queue.cancellations import Cancellation
from handlers.redis_store.queue.queue import Claim, Nack, QueueOptions, RedisQueue, Retries
from handlers.redis_store.results.payloads import StoredPayload
from handlers.redis_store.results.results import Results
from handlers.redis_store.scripts import BATCH_BYTES, SCRIPT_BYTES
from handlers.redis_store.submit.submissions import RequestState, Submissions
from handlers.telemetry.logs import Logger
from tests.poller.rig import running
from tests.redis_store.queue.queueing import DEADLINE, Bench, LosingRedis
from tests.servers.valkey import LONG_LIMIT

ITEM = 700_000
COUNT = 12
"""Together more than twice the largest bound."""
TEXT = "x" * ITEM
SMALL, MANY = 140_000, 60
"""The same bytes in more items, for HSCAN: before Redis 7.4, it returns all items of a hash bucket together."""
BUCKET = 16
"""More items than a bucket of so many has."""


@pytest.fixture
async def bench(store: Redis) -> Bench:
    return Bench(store, "large")


class Sizes:
    """The largest command and reply, and how many commands were sent."""

    def __init__(self) -> None:
        self.command = self.reply = self.count = 0

    def bound(self, limit: int, *, items: int = 1, item: int = ITEM) -> None:
        """At most `limit` bytes and `items` more of `item` bytes; all together have more than twice as much."""
        assert 2 * limit < COUNT * ITEM == MANY * SMALL
        assert self.count, "the connections are not the ones that are measured"
        assert max(self.command, self.reply) <= limit + items * (item + 1_000)


def _size(value: object) -> int:
    if isinstance(value, bytes | str):
        return len(value)
    return sum(_size(one) for one in value) if isinstance(value, list | tuple) else 0


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sizes]:
    found = Sizes()
    send, read = AbstractConnection.send_packed_command, AbstractConnection.read_response

    async def sending(self: Any, command: Any, check_health: bool = True) -> None:
        found.count += 1
        found.command = max(found.command, _size([command] if isinstance(command, bytes) else list(command)))
        await send(self, command, check_health)

    async def reading(self: Any, *args: Any, **kwargs: Any) -> Any:
        reply = await read(self, *args, **kwargs)
        found.reply = max(found.reply, _size(reply))
        return reply

    monkeypatch.setattr(AbstractConnection, "send_packed_command", sending)
    monkeypatch.setattr(AbstractConnection, "read_response", reading)
    yield found


def _member(number: int, *, token: str = "t", is_retry: bool = False, size: int = ITEM) -> bytes:
    internal = {"request_token": token} | ({"retry_count": 1} if is_retry else {})
    data = {"id": f"r-{number}", "deadline": DEADLINE, "payload": "x" * size}
    return json.dumps({"internal": internal, "request_kind": "redis", "data": data}).encode()


async def _fill(bench: Bench) -> None:
    for number in range(COUNT):
        await bench.put(_member(number), number)


async def _claim_all(bench: Bench) -> list[Any]:
    claims = []
    while some := await bench.queue.claim(64):
        claims += some
    return claims


async def test_claims_and_releases_are_bounded(bench: Bench, sizes: Sizes) -> None:
    await _fill(bench)
    claims = await _claim_all(bench)
    assert len(claims) == COUNT
    before = sizes.count
    assert await bench.queue.release(claims) == [True] * COUNT
    assert sizes.count - before >= COUNT * ITEM // SCRIPT_BYTES, "one script moves few bytes"
    sizes.bound(SCRIPT_BYTES)


async def test_reclaims_over_the_redelivery_limit_are_bounded(bench: Bench, sizes: Sizes) -> None:
    await _fill(bench)
    await _claim_all(bench)
    await bench.end_leases()
    dead = []
    while some := (await bench.queue.reclaim(100, 1)).dead:
        dead += some
    assert len(dead) == COUNT
    sizes.bound(SCRIPT_BYTES)


async def test_returns_of_crashed_owners_claims_are_bounded(bench: Bench, sizes: Sizes) -> None:
    await _fill(bench)
    await _claim_all(bench)
    await bench.end_leases()
    scripts = 0
    while (await bench.queue.reclaim(100, 9)).returned:
        scripts += 1
    assert await bench.redis.zcard(bench.queue_name) == COUNT
    assert scripts == COUNT, "one script moves few bytes"
    sizes.bound(SCRIPT_BYTES)


async def test_returns_of_lost_replies_claims_are_bounded(bench: Bench, sizes: Sizes) -> None:
    await _fill(bench)
    redis = LosingRedis(bench.redis)
    poller = bench.owner(redis)
    redis.loses_claims = True
    lost = await asyncio.gather(*(poller.claim(64) for _ in range(COUNT)), return_exceptions=True)
    assert [type(error) for error in lost] == [LostConnection] * COUNT
    assert await poller.take_back() == COUNT
    assert await bench.redis.zcard(bench.queue_name) == COUNT
    assert redis.scripts["take_back"] >= COUNT, "one script moves few bytes"
    sizes.bound(SCRIPT_BYTES)


@pytest.mark.parametrize("token", ["t-0", "t"])
async def test_recalls_are_bounded(bench: Bench, sizes: Sizes, token: str) -> None:
    """By the exact score of our own client's tokens, and through the seconds of a deadline for others."""
    for number in range(COUNT):
        await bench.put(_member(number, token=token), DEADLINE)
    cancelled = [Cancellation(f"r-{number}\0{token}".encode(), DEADLINE) for number in range(COUNT)]
    found = [claim async for claims in bench.queue.recall(cancelled) for claim in claims]
    assert len(found) == COUNT
    sizes.bound(SCRIPT_BYTES)


@pytest.mark.parametrize("is_cluster", [False, True])
async def test_moves_of_due_and_cancelled_retries_are_bounded(bench: Bench, sizes: Sizes, is_cluster: bool) -> None:
    kind = ClusterRetries if is_cluster else Retries
    retries = kind(bench.redis, bench.retries, bench.queue_name)
    for is_cancelled in (False, True):
        for number in range(MANY):
            await bench.redis.zadd(bench.retries, {_member(number, is_retry=True, size=SMALL): 1})
        before = sizes.count
        if is_cancelled:
            cancelled = [Cancellation(f"r-{number}\0t".encode(), DEADLINE) for number in range(MANY)]
            assert await retries.recall(cancelled) == MANY
        else:
            assert await retries.promote(MANY) == MANY
        assert sizes.count - before >= COUNT * ITEM // SCRIPT_BYTES // 2, "one script moves few bytes"
        await bench.redis.delete(bench.queue_name)
    sizes.bound(SCRIPT_BYTES, item=SMALL)


async def test_reads_of_a_crashed_pollers_outbox_are_bounded(bench: Bench, sizes: Sizes) -> None:
    queue = ClusterQueue(bench.redis, "home", QueueOptions(bench.retries, bench.results, cluster=True))
    for number in range(COUNT):
        record = b'{"kind":"list","key":"%s"}\n' % bench.results.encode() + _member(number)
        await bench.redis.hset(beside("home", "outbox"), f"o:{number}", record)
        await bench.redis.zadd(beside("home", "outbox-idx"), {f"o:{number}": 1})
    while await bench.redis.exists(beside("home", "outbox")):
        await queue.reclaim(100, 5)
    assert await bench.redis.llen(bench.results) == COUNT
    sizes.bound(BATCH_BYTES)


async def test_nacks_in_a_cluster_are_bounded(bench: Bench, sizes: Sizes) -> None:
    options = QueueOptions(bench.retries, bench.results, lease_seconds=1_800, cluster=True)
    queue = ClusterQueue(bench.redis, "home", options)
    for number in range(COUNT):
        await bench.redis.zadd("home", {_member(number): number})
    while claims := await queue.claim(64):
        assert all(await queue.nack([Nack(claim, claim.member, 60.0) for claim in claims]))
    assert await bench.redis.zcard(bench.retries) == COUNT
    sizes.bound(BATCH_BYTES)


async def _settled(batcher: AckBatcher, settlements: list[Settlement]) -> None:
    effects: list[bool] = []
    for settlement in settlements:
        batcher.add(settlement, lambda _settlement, has_taken_effect: effects.append(has_taken_effect))
    async with running(batcher.run()):
        await asyncio.wait_for(batcher.drained(), 60)
    assert effects == [True] * len(settlements)


_SETTLEMENTS: dict[str, Callable[[Bench, Claim], Settlement]] = {
    "results": lambda bench, claim: bench.ack_of(claim, result=TEXT.encode()),
    "dead letters": lambda bench, claim: bench.ack_of(claim, result=b"{}", dead=TEXT.encode()),
    "offloaded payloads": lambda bench, claim: msgspec.structs.replace(
        bench.ack_of(claim, result=b"{}"),
        stored=StoredPayload(f"result-payload:{claim.request_id}:1", TEXT.encode(), 60),
    ),
    "tokens": lambda bench, claim: msgspec.structs.replace(bench.ack_of(claim, result=b"{}"), request_token=TEXT),
    "retries": lambda _bench, claim: Nack(claim, claim.member, 60.0),
    "releases": lambda _bench, claim: Release(claim),
}


@pytest.mark.parametrize("kind", _SETTLEMENTS)
@pytest.mark.parametrize("is_cluster", [False, True])
async def test_batches_of_settlements_are_bounded(bench: Bench, sizes: Sizes, kind: str, is_cluster: bool) -> None:
    options = QueueOptions(bench.retries, bench.results, lease_seconds=1_800, cluster=is_cluster)
    queue = (ClusterQueue if is_cluster else RedisQueue)(bench.redis, bench.queue_name, options)
    claims: list[Claim] = []
    await _fill(bench)
    while some := await queue.claim(64):
        claims += some
    await _settled(AckBatcher(queue, Logger("test")), [_SETTLEMENTS[kind](bench, claim) for claim in claims])
    sizes.bound(BATCH_BYTES)


async def test_a_lookup_among_large_members_is_bounded(bench: Bench, sizes: Sizes) -> None:
    """Any producer may choose the score of another's request."""
    deadline = int(time.time()) + 600
    await bench.redis.set("request-active:a", "t-1", exat=deadline)
    for number in range(COUNT):
        await bench.put(_member(number, token="other"), deadline + 1 / 2_097_152)
    sizes.command = 0
    for kind in (Submissions, ClusterSubmissions):
        before = await _calls(bench.redis, "zrangebyscore")
        state, _ = await kind(bench.redis).look_up(bench.queue_name, "a")
        assert state is RequestState.QUEUED
        assert await _calls(bench.redis, "zrangebyscore") - before == 3, "until 2 MB were read"
    sizes.bound(10_000, items=0)


async def _calls(redis: Redis, command: str) -> int:
    return int((await redis.info("commandstats")).get(f"cmdstat_{command}", {"calls": 0})["calls"])


def _result(number: int, *, is_offloaded: bool) -> Result:
    if is_offloaded:
        return Result(f"r-{number}", 200, "", request_token="t", payload_ref=f"result-payload:r-{number}:1")
    return Result(f"r-{number}", 200, TEXT, request_token="t")


async def _put_results(redis: Redis, *lists: str, is_offloaded: bool) -> None:
    for number in range(COUNT):
        await redis.set(f"result-payload:r-{number}:1", TEXT)
        name = lists[number % len(lists)]
        await redis.lpush(name, encode_result(_result(number, is_offloaded=is_offloaded)))


OFFLOADED = pytest.mark.parametrize("is_offloaded", [False, True])


def _client(valkey: Any) -> AsyncClient:
    return AsyncClient.for_redis(
        valkey.url, ClientOptions(queue="q", results="results", lease_seconds=1_800), access=LONG_LIMIT
    )


class Held:
    """Results that a client holds at once, in bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most = 0
        receive = RedisResults.receive

        async def receiving(source: RedisResults, limit: int) -> Any:
            held = await receive(source, limit)
            self.most = max(self.most, sum(len(one.result) for one in held))
            return held

        monkeypatch.setattr(RedisResults, "receive", receiving)


@OFFLOADED
async def test_reads_of_results_under_a_lease_are_bounded(
    store: Redis, valkey: Any, sizes: Sizes, is_offloaded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    await _put_results(store, "results", is_offloaded=is_offloaded)
    async with _client(valkey) as client, client.results(limit=COUNT) as stream:
        seen = []
        async for delivery in stream:
            assert delivery.result.payload == TEXT
            seen.append(delivery.result.id)
            await delivery.ack()
    assert sorted(seen) == sorted(f"r-{number}" for number in range(COUNT))
    assert held.most <= BATCH_BYTES + ITEM + 20_000
    sizes.bound(BATCH_BYTES)


@OFFLOADED
async def test_peeks_at_results_are_bounded(store: Redis, valkey: Any, sizes: Sizes, is_offloaded: bool) -> None:
    await _put_results(store, "results", is_offloaded=is_offloaded)
    async with _client(valkey) as client:
        seen = [result.id async for result in client.peek("results")]
    assert seen == [f"r-{number}" for number in range(COUNT)]
    sizes.bound(BATCH_BYTES)


@OFFLOADED
async def test_waits_for_results_are_bounded(store: Redis, valkey: Any, sizes: Sizes, is_offloaded: bool) -> None:
    """Many lists with one large result each, and one list of many, whose oldest result is read."""
    lists = [result_of_key("results", f"r-{number}") for number in range(COUNT)]
    await _put_results(store, *lists, is_offloaded=is_offloaded)
    for _ in range(9):
        await store.lpush(lists[0], encode_result(answered_result("r-0", "other", 200, TEXT.encode())))
    own = [
        Submission(id=f"r-{number}", token="t", deadline=DEADLINE, queue="q", results=name, has_own_results=True)
        for number, name in enumerate(lists)
    ]
    async with _client(valkey) as client:
        found = await asyncio.gather(*(client.wait(each) for each in own))
    assert [result.id for result in found] == [f"r-{number}" for number in range(COUNT)]
    assert {result.payload for result in found} == {TEXT}
    sizes.bound(BATCH_BYTES)


@OFFLOADED
async def test_reads_of_a_batchs_results_are_bounded(
    store: Redis, valkey: Any, sizes: Sizes, is_offloaded: bool
) -> None:
    await _put_results(store, "results", is_offloaded=is_offloaded)
    names = ("batch", "token", "source", "source_print", "errors", "queue")
    fields: dict[str, Any] = dict.fromkeys(names, "b")
    state = BatchState(**fields, results="results", deadline=DEADLINE)
    queue = BatchQueue(valkey.url, state, access=LONG_LIMIT)
    seen = 0
    while texts := await queue.collect(500):
        assert sum(len(text) for text in texts) <= BATCH_BYTES + ITEM + 20_000
        seen += len(texts)
        await queue.drop(len(texts))
    await queue.close()
    assert seen == COUNT
    sizes.bound(BATCH_BYTES)


async def test_returns_of_leased_results_are_bounded(store: Redis, sizes: Sizes) -> None:
    results = Results(store, "results", owner="a", lease_ms=1_800_000, tombstone_ms=60_000)
    await _put_results(store, "results", is_offloaded=False)
    held = []
    while some := await results.receive(500):
        held += some
    assert len(held) == COUNT
    assert await results.give_back([one.claim_key for one in held]) == COUNT
    sizes.bound(BATCH_BYTES)


async def test_results_with_expired_leases_are_returned_a_few_at_a_time(store: Redis, sizes: Sizes) -> None:
    results = Results(store, "results", owner="a", lease_ms=1_800_000, tombstone_ms=60_000)
    await _put_results(store, "results", is_offloaded=False)
    while await results.receive(500):
        pass
    held_keys: list[Any] = await store.hkeys("results:result-claimed")
    await store.zadd("results:result-claims-idx", dict.fromkeys(held_keys, 1))
    assert len(await results.receive(1)) == 1
    assert await store.hlen("results:result-claimed") >= COUNT - BATCH_BYTES // ITEM
    sizes.bound(BATCH_BYTES)


async def _dead_letters(redis: Redis) -> None:
    letters = DeadLetters(redis, "q")
    assert len([letter async for letter in letters.all()]) == MANY


async def _sample(redis: Redis) -> None:
    await sample_members(redis, "ZRANGE", "q")
    await sample_members(redis, "HSCAN", "q:claimed")


async def _locate(redis: Redis) -> None:
    found = await locate(redis, "r-2", Searched(["q"], "retries", "results"))
    assert {place.where for place in found.places} == {"pending", "claimed", "retry"}
    assert found.result and found.result.is_held


async def _search(redis: Redis) -> None:
    await search(redis, ["q"], "retries", "r-1", cluster=False)


@pytest.mark.parametrize("read", [_dead_letters, _sample, _search, _locate])
async def test_reads_of_operators_are_bounded(
    store: Redis, sizes: Sizes, read: Callable[[Redis], Awaitable[None]]
) -> None:
    text = b"x" * SMALL
    for number in range(MANY):
        await store.zadd("q", {_member(number, size=SMALL): number})
        await store.zadd("retries", {_member(number, size=SMALL): number})
        await store.hset("q:claimed", f"r-{number}", _member(number, size=SMALL))
        await store.hset("q:dead", f"d-{number}", b'{"reason":"x","member":"%s"}' % text)
        await store.lpush("results", encode_result(answered_result("r", "t", 200, text)))
        result = answered_result(f"r-{number}", "t", 200, text)
        await store.hset("results:result-claimed", f"r-{number}", encode_result(result))
    await read(store)
    sizes.bound(PART_BYTES, items=BUCKET, item=SMALL)


@pytest.mark.parametrize("seed", range(4))
async def test_a_hash_that_is_resized_between_two_parts_is_read_completely(each_server: Valkey, seed: int) -> None:
    value = b"x" * 100  # too long for a compact hash
    random = Random(seed)
    async with Redis.from_url(each_server.url, socket_timeout=60, socket_connect_timeout=60) as redis:
        await redis.flushall()
        names = {f"{seed}-{number}".encode() for number in range(random.randrange(1, 70))}
        for name in names:
            await redis.hset("h", name, value)
        read, cursor, added = set[bytes](), "0", 0
        while True:
            part = await read_part(redis, "HSCAN", "h", cursor, entries=1, longest=PART_BYTES)
            read |= {name for name, _, _ in part.rows}
            cursor = part.cursor
            if cursor == "0":
                break
            for _ in range(random.randrange(6) if added < 500 else 0):
                added += 1
                await redis.hset("h", f"more-{added}", value)
        assert names <= read
