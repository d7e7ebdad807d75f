"""A `payload_ref` reaches the payload of its own request and no other key."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from handlers.contract.result import answered_result, encode_result
from handlers.redis_store.keys import is_own_payload, payload_key
from handlers.redis_store.results.payloads import (
    StoredPayload,
    WholeResult,
    read_payload,
    whole_results,
)
from tests.redis_store.queue.queueing import Bench, envelope

OWN = [
    ("request-payload:a:t", "a", "t"),
    ("request-payload:a:t", "a", "t-7"),
    ("request-payload:a:anything", "a", ""),
    ("request-payload:a:b:t", "a:b", "t"),
]
NOT_OWN = [
    ("", "a", "t"),
    ("request-payload:b:t", "a", "t"),
    ("request-payload:b:t", "a", ""),
    ("request-payload:a:u", "a", "t"),
    ("request-payload:a:t-7", "a", "t"),
    ("request-payload:a:t", "a", "t-x"),
    ("request-payload:a:", "a", ""),
    ("request-payload:a", "a", ""),
    ("request-payload:a:b:t", "a", "b:t"),
    ("request-payload:a:b:t", "a", ""),
    ("request-payload::t", "", "t"),
    ("request-active:a", "a", "t"),
    ("quota:userid:a", "a", ""),
]


@pytest.mark.parametrize(("reference", "request_id", "token"), OWN)
async def test_a_request_reads_its_own_payload(store: Redis, reference: str, request_id: str, token: str) -> None:
    await store.set(reference, b"{}")
    assert is_own_payload(reference, request_id, token)
    assert await read_payload(store, reference, request_id, token, 100) == b"{}"


@pytest.mark.parametrize(("reference", "request_id", "token"), NOT_OWN)
async def test_a_request_reads_no_other_key(store: Redis, reference: str, request_id: str, token: str) -> None:
    if reference:
        await store.set(reference, b"secret")
    assert await read_payload(store, reference, request_id, token, 100) is None


@pytest.mark.parametrize("request_id", ["a", "a:b", "é", "a-1"])
def test_payloads_that_our_client_offloads_belong_to_their_requests(request_id: str) -> None:
    assert is_own_payload(payload_key(request_id, "5f2c"), request_id, "5f2c-12")


KEY = "result-payload:r:1"


def reference(key: str = KEY) -> bytes:
    return b'{"id":"r","status_code":200,"payload_ref":"' + key.encode() + b'"}'


async def test_an_offloaded_payload_is_stored_with_its_result_and_expires(bench: Bench) -> None:
    claim = await bench.claimed(envelope("r"))
    stored = StoredPayload(KEY, b"\xff large", 60)
    assert await bench.queue.ack([bench.ack_of(claim, reference(), stored=stored)]) == [True]
    assert await bench.redis.get(KEY) == b"\xff large"
    assert 0 < await bench.redis.ttl(KEY) <= 60


async def test_an_offloaded_payload_of_a_stale_owner_is_not_kept(bench: Bench) -> None:
    claim, other = await bench.claimed(envelope("r")), await bench.claimed(envelope("s"))
    await bench.queue.release([claim])
    acks = [
        bench.ack_of(claim, reference(), stored=StoredPayload(KEY, b"late", 60)),
        bench.ack_of(other, reference("result-payload:s:1"), stored=StoredPayload("result-payload:s:1", b"s", 60)),
    ]
    assert await bench.queue.ack(acks) == [False, True]
    assert await bench.redis.exists(KEY) == 0
    assert await bench.redis.get("result-payload:s:1") == b"s"


async def test_results_are_whole_for_their_readers(store: Redis) -> None:
    await store.set(KEY, b"large")
    plain = encode_result(answered_result("p", "", 200, b'{"payload_ref":"result-payload:r:1"}'))
    found = await whole_results(store, [reference(), plain, b"no json \xff"])
    whole = encode_result(answered_result("r", "", 200, b"large"))
    assert found == [WholeResult(whole, KEY), WholeResult(plain), WholeResult(b"no json \xff")]


@pytest.mark.parametrize("size", [1_000, -1, 0])
async def test_no_more_than_the_named_size_of_a_payload_is_read(
    store: Redis, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handlers.redis_store.results.payloads.LARGEST_PAYLOAD", 2_000)
    await store.set(KEY, bytes(10_000_000))
    sent = (await store.info("stats"))["total_net_output_bytes"]
    (found,) = await whole_results(store, [reference()[:-1] + b',"payload_size":%d}' % size])
    assert b"PAYLOAD_UNAVAILABLE" in found.text
    assert (await store.info("stats"))["total_net_output_bytes"] - sent < 100_000


async def test_a_payload_of_another_type_does_not_hide_later_results(store: Redis) -> None:
    await store.hset(KEY, "a", "b")
    found = await whole_results(store, [reference(), b"no json"])
    assert b"PAYLOAD_UNAVAILABLE" in found[0].text
    assert found[1:] == [WholeResult(b"no json")]


async def test_a_reader_touches_no_other_key_that_a_result_names(store: Redis) -> None:
    await store.set("secret", b"large")
    (found,) = await whole_results(store, [reference("secret")])
    assert found == WholeResult(reference("secret"))
