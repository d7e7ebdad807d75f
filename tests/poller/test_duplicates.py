"""An id queued twice within the window runs once; released, retried and reclaimed requests run."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any, cast

import msgspec
import pytest
from redis.asyncio import Redis

from handlers.contract.request import Request, decode_member
from handlers.contract.result import ErrorCode, answered_result
from handlers.forward.outcome import Answered, Outcome, Retry
from handlers.poller.settlement import Duplicates, ResultRoute
from handlers.redis_store.admin.dead_letters import DeadLetters
from handlers.redis_store.keys import id_record_key, queue_keys
from tests.poller.rig import IN_TIME, QUEUE, RESULTS, RETRIES, Rig, answering, body, running
from tests.redis_keys import claims_left, end_leases, leaked_keys
from tests.waiting import wait_until_async


def rig_of(store: Redis, handler: Any = answering, window_seconds: int = 600, name: str = QUEUE) -> Rig:
    """A rig whose queue is idempotent."""
    rig = Rig(store, handler, name=name)
    route = ResultRoute("", None, RESULTS)
    rig.change(duplicates=Duplicates(store, route, rig.log, window_seconds=window_seconds))
    return rig


def submission(token: str, **fields: Any) -> bytes:
    data = json.loads(body("a", **fields))
    return json.dumps({"internal": {"request_token": token}, "request_kind": "redis", "data": data}).encode()


async def carried(rig: Rig, *members: bytes) -> None:
    claims = await rig.claimed(*members)
    async with running(rig.ack_batcher.run()):
        rig.start(claims)
        await wait_until_async(lambda: rig.worker.in_flight == 0, "all outcomes")
        await asyncio.wait_for(rig.ack_batcher.drained(), IN_TIME)


async def test_a_duplicates_result_states_that_the_first_is_finished(store: Redis) -> None:
    rig = rig_of(store)
    await carried(rig, submission("one"))
    await carried(rig, submission("two"))
    first, second = await rig.results()
    assert first == answered_result("a", "one", 200, b"{}")
    assert (second.request_token, second.error_code) == ("two", ErrorCode.DUPLICATE)
    assert "finished" in second.error_message
    assert len(rig.dispatched) == 1
    assert await claims_left(store, QUEUE) == {}
    assert await leaked_keys(store, [QUEUE], [RESULTS]) == []


async def test_a_duplicates_result_states_that_the_first_waits_for_a_retry(store: Redis) -> None:
    async def busy(_request: Request) -> Outcome:
        return Retry(60.0, "rejected")

    rig = rig_of(store, busy)
    await carried(rig, submission("one"))
    await carried(rig, submission("two"))
    (second,) = await rig.results()
    assert (second.request_token, second.error_code) == ("two", ErrorCode.DUPLICATE)
    assert "live" in second.error_message
    assert (len(rig.dispatched), await store.zcard(RETRIES)) == (1, 1)


async def test_the_retry_of_the_first_runs(store: Redis) -> None:
    async def busy_once(request: Request) -> Outcome:
        return Retry(60.0, "rejected") if request.attempt == 0 else await answering(request)

    rig = rig_of(store, busy_once)
    for first in (submission("one"), body("b")):
        await carried(rig, first)
        (retry,) = cast("list[bytes]", await store.zrange(RETRIES, 0, -1))
        await store.zrem(RETRIES, retry)
        await carried(rig, retry)
    assert [result.status_code for result in await rig.results()] == [200, 200]


async def test_a_long_token_makes_no_long_record(store: Redis) -> None:
    rig, long = rig_of(store), "t" * 1_000_000
    await carried(rig, submission(long))
    await carried(rig, submission(long + "2"))
    assert await store.strlen(id_record_key("a", QUEUE)) < 100
    assert [result.error_code for result in await rig.results()] == ["", ErrorCode.DUPLICATE]


async def test_without_tokens_there_is_one_result_for_the_id(store: Redis) -> None:
    rig = rig_of(store)
    await carried(rig, body("a", n=1))
    await carried(rig, body("a", n=2))
    assert [result.status_code for result in await rig.results()] == [200]
    assert (await rig.pending(), await claims_left(store, QUEUE)) == (0, {})


async def test_an_identical_body_does_not_run_again_after_it_is_finished(store: Redis) -> None:
    rig, same = rig_of(store), body("a")
    await carried(rig, same)
    await carried(rig, same)
    assert (len(rig.dispatched), await rig.result_count()) == (1, 1)


async def test_the_same_id_in_another_queue_is_another_request(store: Redis) -> None:
    """Two teams use the same id; each gets its own result."""
    ours, others = rig_of(store), rig_of(store, name=f"{QUEUE}:b")
    for number in range(3):
        for rig in (ours, others):
            await carried(rig, json.dumps({**json.loads(body("a")), "id": f"job-{number}"}).encode())
    assert (len(ours.dispatched), len(others.dispatched), await ours.result_count()) == (3, 3, 6)


async def test_equal_bodies_do_not_run_at_the_same_time(store: Redis) -> None:
    may_answer = asyncio.Event()

    async def retrying(request: Request) -> Outcome:
        await may_answer.wait()
        return await answering(request)

    rig, same = rig_of(store, retrying), body("a")
    first, second = await rig.claimed(same), await rig.claimed(same)
    async with running(rig.ack_batcher.run()):
        rig.start([*first, *second])
        await wait_until_async(lambda: rig.worker.in_flight == 1, "the second is settled")
        may_answer.set()
        await wait_until_async(lambda: rig.worker.in_flight == 0, "all outcomes")
        await asyncio.wait_for(rig.ack_batcher.drained(), IN_TIME)
    assert (len(rig.dispatched), await rig.result_count()) == (1, 1)


async def test_a_released_request_runs_with_its_next_owner(store: Redis) -> None:
    async def never(_request: Request) -> Outcome:
        await asyncio.Event().wait()
        raise AssertionError

    rig = rig_of(store, never)
    claims = await rig.claimed(body("a"))
    async with running(rig.ack_batcher.run()):
        rig.start(claims)
        await wait_until_async(lambda: len(rig.dispatched) == 1, "it is in flight")
        rig.worker.hand_back()
        await wait_until_async(lambda: rig.worker.held_claims() == [], "it is released")
    successor = rig_of(store)
    claims = await successor.queue.claim(1)
    async with running(successor.ack_batcher.run()):
        successor.start(claims)
        await wait_until_async(lambda: successor.worker.held_claims() == [], "it is answered")
    assert [result.status_code for result in await successor.results()] == [200]


async def test_after_its_window_an_id_runs_again(store: Redis) -> None:
    rig = rig_of(store, window_seconds=60)
    await carried(rig, submission("one"))
    assert 0 < await store.ttl(id_record_key("a", QUEUE)) <= 60, "it counts from the end, not from the deadline"
    await store.delete(id_record_key("a", QUEUE))
    await carried(rig, submission("two"))
    assert [result.status_code for result in await rig.results()] == [200, 200]


async def test_a_submission_that_never_ended_counts_until_after_its_deadline(store: Redis) -> None:
    async def busy(_request: Request) -> Outcome:
        return Retry(60.0, "rejected")

    await carried(rig_of(store, busy, 60), submission("one", deadline=time.time() + 1_000))
    assert 900 < await store.ttl(id_record_key("a", QUEUE)) <= 1_061


async def test_the_very_same_member_runs_and_is_answered_once_although_it_has_a_token(store: Redis) -> None:
    """A producer whose reply was lost sends its command again: no second result under one token."""
    rig, same = rig_of(store), submission("one")
    await carried(rig, same)
    await carried(rig, same)
    assert await rig.results() == [answered_result("a", "one", 200, b"{}")]


async def test_an_identical_member_does_not_delete_the_firsts_keys(store: Redis) -> None:
    may_answer = asyncio.Event()

    async def retrying(request: Request) -> Outcome:
        await may_answer.wait()
        return await answering(request)

    rig, same = rig_of(store, retrying), submission("one")
    await store.set("request-active:a", "one")
    first = await rig.claimed(same)
    assert await rig.claimed(same) == [], "it ends with the first"
    async with running(rig.ack_batcher.run()):
        rig.start(first)
        assert (await store.get("request-active:a"), await rig.result_count()) == (b"one", 0)
        may_answer.set()
        await wait_until_async(lambda: rig.worker.held_claims() == [], "all outcomes")
    assert await rig.results() == [answered_result("a", "one", 200, b"{}")]
    assert not await store.exists("request-active:a")


async def test_a_retry_rewritten_by_another_processor_is_recognised(store: Redis) -> None:
    """A mixed fleet: other spaces, order and escapes, a number as a float, a trace in the metadata."""

    async def busy_once(request: Request) -> Outcome:
        return Retry(60.0, "rejected") if request.attempt == 0 else await answering(request)

    rig = rig_of(store, busy_once)
    data = json.loads(body("a", created=1_700_000_000, payload={"prompt": "<a & b>", "n": 12345678901234567890}))
    await carried(rig, json.dumps(data).encode())
    await store.delete(RETRIES)
    data["payload"]["n"] = 1.2345678901234567e19
    data["metadata"] = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    data = dict(reversed(data.items()))
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c").replace("&", "\\u0026")
    await carried(rig, b'{"internal":{"retry_count":1},"request_kind":"plain","data":%b}' % text.encode())
    assert [result.status_code for result in await rig.results()] == [200]


@pytest.mark.parametrize("members", [(submission("one"), submission("two")), (body("a", n=1), body("a", n=2))])
async def test_after_its_poller_was_killed_a_request_runs_and_is_not_its_own_duplicate(
    store: Redis, members: tuple[bytes, bytes]
) -> None:
    killed = rig_of(store)
    (claim,) = await killed.claimed(members[0])
    duplicates = killed.options.duplicates
    assert duplicates
    envelope = decode_member(claim.member, QUEUE)
    assert await duplicates.answer(claim, envelope, time.time()) is None, "it began to run"
    await end_leases(store, queue_keys(QUEUE).index)
    successor = rig_of(store)
    assert (await successor.queue.reclaim(10, 5)).returned == 1
    claims = await successor.queue.claim(1)
    async with running(successor.ack_batcher.run()):
        successor.start(claims)
        await wait_until_async(lambda: successor.worker.held_claims() == [], "it is answered")
    assert [result.status_code for result in await successor.results()] == [200]
    await carried(successor, members[1])
    assert len(successor.dispatched) == 1


async def test_a_request_whose_result_a_failover_lost_runs_again(store: Redis) -> None:
    """The mark is on another server of a cluster than the result and the claim, which came back."""
    rig = rig_of(store)
    await carried(rig, submission("one"))
    await store.delete(RESULTS)
    (claim,) = await rig.claimed(submission("one"))
    async with running(rig.ack_batcher.run()):
        rig.start([msgspec.structs.replace(claim, delivery_count=1)])
        await wait_until_async(lambda: rig.worker.held_claims() == [], "it is answered")
    assert [result.status_code for result in await rig.results()] == [200]


async def test_a_first_that_was_cancelled_in_flight_is_finished(store: Redis) -> None:
    async def never(_request: Request) -> Outcome:
        await asyncio.Event().wait()
        raise AssertionError

    rig = rig_of(store, never)
    claims = await rig.claimed(submission("one"))
    async with running(rig.ack_batcher.run()):
        rig.start(claims)
        await wait_until_async(lambda: len(rig.dispatched) == 1, "it is in flight")
        rig.worker.cancel(claims)
        await wait_until_async(lambda: rig.worker.held_claims() == [], "it is cancelled")
    await carried(rig, submission("two"))
    first, second = await rig.results()
    assert (first.error_code, second.error_code) == (ErrorCode.CANCELLED, ErrorCode.DUPLICATE)
    assert "finished" in second.error_message


@pytest.mark.parametrize("how", ["cancelled", "expired"])
async def test_a_first_that_ended_while_it_waited_is_finished(store: Redis, how: str) -> None:
    async def busy(_request: Request) -> Outcome:
        return Retry(60.0, "rejected")

    rig = rig_of(store, busy)
    deadline = time.time() + 3_600
    await carried(rig, submission("one", deadline=deadline))
    (retry,) = cast("list[bytes]", await store.zrange(RETRIES, 0, -1))
    (claim,) = await rig.claimed(retry)
    if how == "expired":
        rig.clock = lambda: deadline + 1
    async with running(rig.ack_batcher.run()):
        await rig.worker.answer_expired([msgspec.structs.replace(claim, is_cancelled=how == "cancelled")])
        await wait_until_async(lambda: rig.worker.held_claims() == [], "it is answered")
    rig.clock = rig.queue.now
    await carried(rig, submission("two"))
    second = (await rig.results())[-1]
    assert (second.error_code, "finished" in second.error_message) == (ErrorCode.DUPLICATE, True)


async def test_a_dead_letter_is_finished_but_runs_when_it_is_queued_again(store: Redis) -> None:
    rig = rig_of(store)
    (claim,) = await rig.claimed(submission("one"))
    duplicates = rig.options.duplicates
    assert duplicates
    await duplicates.answer(claim, decode_member(claim.member, QUEUE), time.time())
    async with running(rig.ack_batcher.run()):
        await rig.worker.dead_letter([claim], 5)
        await wait_until_async(lambda: rig.worker.held_claims() == [], "it is dead-lettered")
    await carried(rig, submission("two"))
    assert "finished" in (await rig.results())[-1].error_message
    letters = DeadLetters(store, QUEUE)
    async for letter in letters.all():
        assert await letters.requeue(letter)
    claims = await rig.queue.claim(1)
    async with running(rig.ack_batcher.run()):
        rig.start(claims)
        await wait_until_async(lambda: rig.worker.held_claims() == [], "it is answered")
    codes = [result.error_code or result.status_code for result in await rig.results()]
    assert codes == [ErrorCode.UNDELIVERABLE, ErrorCode.DUPLICATE, 200]


async def test_without_the_setting_each_submission_runs(store: Redis) -> None:
    async def answer(request: Request) -> Outcome:
        return Answered(answered_result(request.id, request.request_token, 200, b"{}"))

    rig = Rig(store, answer)
    await carried(rig, submission("one"))
    await carried(rig, submission("two"))
    assert [result.status_code for result in await rig.results()] == [200, 200]
    assert not await store.exists(id_record_key("a", QUEUE))


async def test_a_cancelled_or_expired_request_counts_as_finished(store: Redis) -> None:
    """It stands for its id as long as any other that is finished, and no longer as one that is live."""

    async def endless(_request: Request) -> Outcome:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async def busy(_request: Request) -> Outcome:
        return Retry(60.0, "rejected")

    rig = rig_of(store, endless)
    claims = await rig.claimed(submission("one"))
    async with running(rig.ack_batcher.run()):
        rig.start(claims)
        await wait_until_async(lambda: bool(rig.dispatched), "the request in flight")
        rig.worker.cancel(claims)
        await wait_until_async(lambda: rig.worker.in_flight == 0, "its work to end")
        await asyncio.wait_for(rig.ack_batcher.drained(), IN_TIME)
        assert await store.get(id_record_key("a", QUEUE)) == b"!token one"
        assert 0 < await store.ttl(id_record_key("a", QUEUE)) <= 600

        await store.delete(id_record_key("a", QUEUE))
        rig.handler = busy
        await carried(rig, submission("two"))
        (retry,) = cast("list[bytes]", await store.zrange(RETRIES, 0, -1))
        late = retry.replace(json.dumps(json.loads(retry)["data"]["deadline"]).encode(), b"5")
        await rig.worker.answer_expired(await rig.claimed(late))
        await asyncio.wait_for(rig.ack_batcher.drained(), IN_TIME)
    assert await store.get(id_record_key("a", QUEUE)) == b"!token two"
