"""The conformance vectors of settlements: results, retries, cancellations and pushes."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import pytest
from redis.asyncio import Redis

from handlers.client import AsyncClient, ClientOptions
from handlers.contract.errors import InvalidRequest
from handlers.contract.request import Request, decode_member, encode_retry
from handlers.contract.result import answered_result, decode_result
from handlers.demo.valkey import Valkey
from handlers.doors.door import Delivery
from handlers.doors.pubsub.push import PubSubPushDoor, PushOptions, Subscription
from handlers.forward.outcome import Answered
from handlers.poller.settlement import ResultRoute, refuse, settle
from handlers.redis_store.keys import queue_keys
from handlers.redis_store.queue.queue import Ack, Claim, Nack, QueueOptions, RedisQueue, Retries
from handlers.telemetry.logs import get_logger
from tests.conformance.test_vectors import Case, cases
from tests.redis_keys import end_leases
from tests.servers.valkey import LONG_LIMIT

QUEUE, DEADLINE = "q", 1_999_999_999
OPTIONS = QueueOptions("retries", "results")


def ack_of(claim: Claim, route: ResultRoute) -> Ack:
    """The ack of a claim with a 200, or its refusal if the member is invalid."""
    try:
        envelope = decode_member(claim.member, QUEUE)
    except InvalidRequest as error:
        return refuse(claim, error, route, time.time())
    answer = Answered(answered_result("a", envelope.request.request_token, 200, b"{}"))
    ack = settle(claim, envelope, answer, route, time.time())
    assert isinstance(ack, Ack)
    return ack


async def plant_a_readers_keys(store: Redis, results: str) -> dict[str, bytes | None]:
    """Create the keys of a consumer that receives under a lease, with their content."""
    claimed, owners, index, tombstones = (
        f"{results}:{kind}"
        for kind in ("result-claimed", "result-claim-owners", "result-claims-idx", "result-ack-tombstones")
    )
    await store.hset(claimed, "b\0u", '{"id":"b","payload":"{}","request_token":"u"}')
    await store.hset(owners, "b\0u", "5f2c9a0e41d7b683")
    await store.zadd(index, {"b\0u": 1_999_999_999_000})
    await store.zadd(tombstones, {"a\0t": 1_999_999_999_000, "a": 1_999_999_999_000})
    return {key: await store.dump(key) for key in (claimed, owners, index, tombstones)}


@cases("acks")
async def test_a_result_reaches_its_list_and_the_submissions_keys_are_deleted(store: Redis, case: Case) -> None:
    queue, own = RedisQueue(store, QUEUE, OPTIONS), case["queue"]
    route = ResultRoute(own.get("result_queue_name", ""), own.get("result_ttl_seconds"), "results")
    for key, value in case["before"].items():
        await store.set(key, value)
    await store.rpush(case["list"], "an older one")
    await store.zadd(QUEUE, {case["member"]: 1})
    (claim,) = await queue.claim(1)
    readers = await plant_a_readers_keys(store, case["list"])

    assert await queue.ack([ack_of(claim, route)]) == [True]

    assert {key: await store.dump(key) for key in readers} == readers, "what reads under a lease is its own affair"

    assert await store.rpop(case["list"]) == b"an older one", "consumers take the oldest from the right"
    texts: Any = await store.lrange(case["list"], 0, -1)
    assert [decode_result(text).id for text in texts] == ["a"]
    ttl = await store.ttl(case["list"])
    assert ttl == -1 if case["ttl"] < 0 else 0 < ttl <= case["ttl"]
    assert await store.exists(*(case["gone"] or ["nothing"])) == 0
    assert await store.exists(*(case["kept"] or ["nothing"])) == len(case["kept"])
    claims = [f"{QUEUE}:claimed", f"{QUEUE}:claim-owners", f"{QUEUE}:claims-idx", QUEUE]
    assert await store.exists(*claims) == 0


@cases("retries")
async def test_a_retry_waits_by_its_due_time_and_returns_under_its_score(store: Redis, case: Case) -> None:
    queue = RedisQueue(store, case["queue"], OPTIONS)
    await store.zadd(case["queue"], {case["member"]: case["score"]})
    (claim,) = await queue.claim(1)
    member = encode_retry(claim.member, queue=case["queue"], attempt=case["attempt"], score=claim.score)
    assert await queue.nack([Nack(claim, member, 300.0)]) == [True]

    found: Any = await store.zrange("retries", 0, -1, withscores=True)
    ((waiting, due),) = found
    assert (waiting, due) == (member, pytest.approx(time.time() + 300, abs=60))
    retries = Retries(store, "retries", "another")
    assert await retries.promote(10) == 0, "not due"

    await store.zadd("retries", {member: 1})
    assert await retries.promote(10) == 1
    assert await store.zrange(case["queue"], 0, -1, withscores=True) == [(member, case["score"])]
    assert await store.exists("another", "retries") == 0


@cases("retries")
async def test_an_expired_claim_returns_under_its_score(store: Redis, case: Case) -> None:
    queue = RedisQueue(store, case["queue"], OPTIONS)
    await store.zadd(case["queue"], {case["member"]: case["score"]})
    (claim,) = await queue.claim(1)
    await end_leases(store, queue_keys(case["queue"]).index)

    assert (await queue.reclaim(10, 5)).returned == 1
    found = await store.zrange(case["queue"], 0, -1, withscores=True)
    assert found == [(case["member"].encode(), case["score"])]
    assert await queue.renew([claim]) == [claim], "the old owner has lost it"


@cases("returns")
async def test_a_retry_of_another_processor_returns_when_it_is_due(store: Redis, case: Case) -> None:
    await store.zadd("retries", {case["member"]: time.time() + 300})
    retries = Retries(store, "retries", QUEUE)
    assert await retries.promote(10) == 0, "not due"

    await store.zadd("retries", {case["member"]: int(time.time())})
    assert await retries.promote(10) == 1

    found = await store.zrange(case["queue"], 0, -1, withscores=True)
    assert found == [(case["member"].encode(), pytest.approx(case["score"], abs=1e-7))]


@cases("returns")
async def test_an_expired_claim_of_another_processor_returns_under_its_score(store: Redis, case: Case) -> None:
    names = queue_keys(QUEUE)
    await store.hset(names.claimed, "a", case["member"])
    await store.hset(names.owners, "a", "5f2c9a0e41d7b683")
    await store.zadd(names.index, {"a": int(time.time())})

    assert (await RedisQueue(store, QUEUE, OPTIONS).reclaim(10, 5)).returned == 1

    found = await store.zrange(QUEUE, 0, -1, withscores=True)
    assert found == [(case["member"].encode(), pytest.approx(case["score"], abs=1e-7))]
    assert await store.exists(names.claimed, names.owners, names.index) == 0


@cases("cancellations")
async def test_a_request_is_cancelled_by_its_own_token_alone(store: Redis, case: Case) -> None:
    if case["cancel"] is not None:
        await store.set("request-cancel:a", case["cancel"])
    await store.zadd(QUEUE, {case["member"]: 1})
    (claim,) = await RedisQueue(store, QUEUE, OPTIONS).claim(1)
    assert claim.is_cancelled is case["is_cancelled"]


@cases("submissions")
async def test_our_submissions_have_the_references_format(store: Redis, valkey: Valkey, case: Case) -> None:
    options = ClientOptions(queue=QUEUE, results="results", payload_apart_bytes=32)
    async with AsyncClient.for_redis(valkey.url, options, access=LONG_LIMIT) as client:
        token = (await client.submit(id="a", deadline=DEADLINE, **case["fields"])).token

    found: Any = await store.zrange(QUEUE, 0, -1, withscores=True)
    ((member, score),) = found
    envelope = json.loads(member)
    created = envelope["data"].pop("created")
    place = token.rpartition("-")[0]
    internal = json.loads(json.dumps(case["internal"]).replace("a:<token>", f"a:{place}").replace("<token>", token))
    assert (envelope["request_kind"], envelope["data"], envelope["internal"]) == (
        "redis",
        case["data"],
        internal,
    )
    assert created == pytest.approx(time.time(), abs=60)
    assert isinstance(created, int)
    assert score == pytest.approx(DEADLINE + case["internal"]["enqueue_seq"] / 2**21, abs=1e-7)
    assert await store.get("request-active:a") == token.encode()
    assert await store.get(f"request-seq:{QUEUE}:{DEADLINE}") == b"1"
    offloaded = await store.get(f"request-payload:a:{place}")
    assert offloaded == (case["apart"].encode() if "apart" in case else None)


class Topics:
    """Keeps the publishes of a door."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, bytes, Mapping[str, str]]] = []

    async def publish(self, topic: str, data: bytes, attributes: Mapping[str, str] | None = None) -> str:
        """Keep a publish."""
        self.taken.append((topic, data, attributes or {}))
        return "1"


def door_of(topics: Topics) -> PubSubPushDoor:
    """A door whose results go to `results`."""
    return PubSubPushDoor(
        topics,
        lambda _name: Subscription("s", "results"),
        get_logger("test"),
        PushOptions(project_id="p", max_request_bytes=10_000),
    )


@cases("refused_pushes")
async def test_an_invalid_push_gets_its_result_on_the_topic_that_it_names(case: Case) -> None:
    topics = Topics()
    door = door_of(topics)
    decoded = await door.decode(Delivery([], json.dumps(case["push"]).encode()))
    if isinstance(decoded, tuple):
        refused, context = decoded
        assert isinstance(refused, Answered)
        assert (await door.settle(context, refused)).status_code == 204

    ((topic, data, attributes),) = topics.taken
    assert (topic, attributes) == (case["topic"], case["attributes"])
    result = decode_result(data)
    assert (result.id, result.error_code, result.status_code) == (case["id"], "INVALID_REQUEST", 0)


@cases("pushes")
async def test_a_push_is_read_and_its_result_names_the_request(case: Case) -> None:
    topics = Topics()
    door = door_of(topics)
    decoded = await door.decode(Delivery([], json.dumps(case["push"]).encode()))
    assert isinstance(decoded, tuple)
    request, context = decoded
    assert isinstance(request, Request)
    for name, expected in case["fields"].items():
        found = getattr(request, name)
        assert (found.decode() if isinstance(found, bytes) else found) == expected, name

    settled = await door.settle(context, Answered(answered_result("a", "", 200, b"{}")))

    ((topic, data, attributes),) = topics.taken
    assert settled.status_code == 204
    assert (topic, attributes) == (case["topic"], case["attributes"])
    assert json.loads(data) == {"id": "a", "status_code": 200, "payload": "{}"}
