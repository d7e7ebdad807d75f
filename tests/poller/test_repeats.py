"""One id queued twice: with the window set it runs once, and what was released, retried or reclaimed still runs."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any, cast

from redis.asyncio import Redis

from handlers.contract.request import Request
from handlers.contract.result import ErrorCode, answered_result
from handlers.forward.outcome import Answered, Outcome, Retry
from handlers.poller.repeats import Repeats
from handlers.poller.settlement import ResultRoute
from tests.poller.rig import IN_TIME, QUEUE, RESULTS, RETRIES, Rig, answering, body, running
from tests.redis_keys import claims_left, leaked_keys
from tests.waiting import wait_until_async


def rig_of(store: Redis, handler: Any = answering, window_seconds: int = 600) -> Rig:
    """A rig whose queue is idempotent."""
    rig = Rig(store, handler)
    route = ResultRoute("", None, RESULTS)
    rig.carrier._repeats = Repeats(store, route, rig.log, window_seconds=window_seconds)
    return rig


def submission(token: str, **fields: Any) -> bytes:
    data = json.loads(body("a", **fields))
    return json.dumps({"internal": {"request_token": token}, "request_kind": "redis", "data": data}).encode()


async def carried(rig: Rig, *members: bytes) -> None:
    claims = await rig.claimed(*members)
    async with running(rig.settler.run()):
        rig.carrier.start(claims)
        await wait_until_async(lambda: rig.carrier.in_flight == 0, IN_TIME, "all outcomes")
        await asyncio.wait_for(rig.settler.drained(), IN_TIME)


async def test_a_second_submission_is_told_that_the_first_is_finished(store: Redis) -> None:
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


async def test_a_second_submission_is_told_that_the_first_waits_for_its_retry(store: Redis) -> None:
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


async def test_without_tokens_there_is_one_result_for_the_id(store: Redis) -> None:
    rig = rig_of(store)
    await carried(rig, body("a", n=1))
    await carried(rig, body("a", n=2))
    assert [result.status_code for result in await rig.results()] == [200]
    assert (await rig.pending(), await claims_left(store, QUEUE)) == (0, {})


async def test_the_very_same_body_does_not_run_again_once_it_is_finished(store: Redis) -> None:
    rig, same = rig_of(store), body("a")
    await carried(rig, same)
    await carried(rig, same)
    assert (len(rig.dispatched), await rig.result_count()) == (1, 1)


async def test_the_very_same_body_does_not_run_beside_itself(store: Redis) -> None:
    may_answer = asyncio.Event()

    async def patient(request: Request) -> Outcome:
        await may_answer.wait()
        return await answering(request)

    rig, same = rig_of(store, patient), body("a")
    first, second = await rig.claimed(same), await rig.claimed(same)
    async with running(rig.settler.run()):
        rig.carrier.start([*first, *second])
        await wait_until_async(lambda: rig.carrier.in_flight == 1, IN_TIME, "the second is settled")
        may_answer.set()
        await wait_until_async(lambda: rig.carrier.in_flight == 0, IN_TIME, "all outcomes")
        await asyncio.wait_for(rig.settler.drained(), IN_TIME)
    assert (len(rig.dispatched), await rig.result_count()) == (1, 1)


async def test_what_was_handed_back_runs_with_its_next_owner(store: Redis) -> None:
    async def never(_request: Request) -> Outcome:
        await asyncio.Event().wait()
        raise AssertionError

    rig = rig_of(store, never)
    claims = await rig.claimed(body("a"))
    async with running(rig.settler.run()):
        rig.carrier.start(claims)
        await wait_until_async(lambda: len(rig.dispatched) == 1, IN_TIME, "it is in flight")
        rig.carrier.hand_back()
        await wait_until_async(lambda: rig.carrier.held_claims() == [], IN_TIME, "it is released")
    heir = rig_of(store)
    claims = await heir.queue.claim(1)
    async with running(heir.settler.run()):
        heir.carrier.start(claims)
        await wait_until_async(lambda: heir.carrier.held_claims() == [], IN_TIME, "it is answered")
    assert [result.status_code for result in await heir.results()] == [200]


async def test_behind_its_window_an_id_runs_again(store: Redis) -> None:
    rig = rig_of(store, window_seconds=60)
    await carried(rig, submission("one"))
    assert 0 < await store.ttl("request-stands:a") <= 60, "it counts from the end, not from the deadline"
    await store.delete("request-stands:a")
    await carried(rig, submission("two"))
    assert [result.status_code for result in await rig.results()] == [200, 200]


async def test_a_submission_that_never_ended_stands_until_behind_its_deadline(store: Redis) -> None:
    async def busy(_request: Request) -> Outcome:
        return Retry(60.0, "rejected")

    await carried(rig_of(store, busy, 60), submission("one", deadline=time.time() + 1_000))
    assert 900 < await store.ttl("request-stands:a") <= 1_061


async def test_unset_each_submission_runs(store: Redis) -> None:
    async def answer(request: Request) -> Outcome:
        return Answered(answered_result(request.id, request.request_token, 200, b"{}"))

    rig = Rig(store, answer)
    await carried(rig, submission("one"))
    await carried(rig, submission("two"))
    assert [result.status_code for result in await rig.results()] == [200, 200]
    assert not await store.exists("request-stands:a")


async def test_what_was_cancelled_in_flight_or_expired_between_attempts_is_finished(store: Redis) -> None:
    """It stands for its id as long as any other that is finished, and no longer as one that is live."""

    async def forever(_request: Request) -> Outcome:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async def busy(_request: Request) -> Outcome:
        return Retry(60.0, "rejected")

    rig = rig_of(store, forever)
    claims = await rig.claimed(submission("one"))
    async with running(rig.settler.run()):
        rig.carrier.start(claims)
        await wait_until_async(lambda: bool(rig.dispatched), IN_TIME, "the request under way")
        rig.carrier.cancel(claims)
        await wait_until_async(lambda: rig.carrier.in_flight == 0, IN_TIME, "its work to end")
        await asyncio.wait_for(rig.settler.drained(), IN_TIME)
        assert await store.get("request-stands:a") == b"!one"
        assert 0 < await store.ttl("request-stands:a") <= 600

        await store.delete("request-stands:a")
        rig.handler = busy
        await carried(rig, submission("two"))
        (retry,) = cast("list[bytes]", await store.zrange(RETRIES, 0, -1))
        late = retry.replace(json.dumps(json.loads(retry)["data"]["deadline"]).encode(), b"5")
        rig.carrier.answer_expired(await rig.claimed(late))
        await asyncio.wait_for(rig.settler.drained(), IN_TIME)
    assert await store.get("request-stands:a") == b"!two"
