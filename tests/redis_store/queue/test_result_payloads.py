"""Answers stored apart: there before their result, gone with a settlement that was refused."""

from __future__ import annotations

from redis.asyncio import Redis

from handlers.contract.result import answered_result, encode_result
from handlers.redis_store.queue.result_payloads import StoredPayload, WholeResult, whole_results
from tests.redis_store.queue.queueing import Bench, envelope

KEY = "result-payload:r:1"


def reference(key: str = KEY) -> bytes:
    return b'{"id":"r","status_code":200,"payload_ref":"' + key.encode() + b'"}'


async def test_an_answer_is_there_with_its_result_and_expires(bench: Bench) -> None:
    claim = await bench.claimed(envelope("r"))
    stored = StoredPayload(KEY, b"\xff large", 60)
    assert await bench.queue.ack([bench.ack_of(claim, reference(), stored=stored)]) == [True]
    assert await bench.redis.get(KEY) == b"\xff large"
    assert 0 < await bench.redis.ttl(KEY) <= 60


async def test_an_answer_of_a_stale_owner_is_not_kept(bench: Bench) -> None:
    claim, other = await bench.claimed(envelope("r")), await bench.claimed(envelope("s"))
    await bench.queue.release([claim])
    acks = [
        bench.ack_of(claim, reference(), stored=StoredPayload(KEY, b"late", 60)),
        bench.ack_of(
            other, reference("result-payload:s:1"), stored=StoredPayload("result-payload:s:1", b"s", 60)
        ),
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


async def test_a_result_can_make_its_reader_touch_no_other_key(store: Redis) -> None:
    await store.set("secret", b"large")
    (found,) = await whole_results(store, [reference("secret")])
    assert found == WholeResult(reference("secret"))
