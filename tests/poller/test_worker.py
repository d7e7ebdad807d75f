"""Processing a claim: decoded, dispatched, settled; dropped when its lease is lost; never stuck."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from handlers.byte_budget import ByteBudget
from handlers.contract.lenient_json import BLOCKING_BYTES
from handlers.contract.request import Envelope, Request, encode_retry
from handlers.contract.result import ErrorCode, Result, answered_result
from handlers.forward.forward import AttemptOptions
from handlers.forward.outcome import Answered, LastResponse, Outcome, Retry
from handlers.poller.ack_batcher import size_of
from handlers.poller.settlement import RequestLimits, ResultRoute
from handlers.redis_store.admin.dead_letters import DeadLetters
from handlers.redis_store.keys import queue_keys
from tests.poller.rig import IN_TIME, QUEUE, RESULTS, RETRIES, Rig, answering, body, running
from tests.redis_keys import claims_left, end_leases
from tests.waiting import wait_until_async


async def carried(rig: Rig, *members: bytes) -> None:
    """Claim these, carry them, and wait until all is recorded."""
    claims = await rig.claimed(*members)
    async with running(rig.ack_batcher.run()):
        rig.start(claims)
        await wait_until_async(lambda: rig.worker.in_flight == 0, "all outcomes")
        await asyncio.wait_for(rig.ack_batcher.drained(), IN_TIME)


async def test_an_answer_becomes_a_result(store: Redis) -> None:
    rig = Rig(store)
    await carried(rig, body("a", metadata={"userid": "me"}))
    assert await rig.results() == [answered_result("a", "", 200, b"{}")]
    assert rig.dispatched[0].metadata == {"userid": "me"}
    assert rig.worker.held_claims() == []


@pytest.mark.parametrize("last", [None, LastResponse(500, b"no")])
async def test_the_last_attempt_has_a_result(store: Redis, last: LastResponse | None) -> None:
    async def failing(_request: Request) -> Outcome:
        return Retry(60.0, "server_error", last=last)

    rig = Rig(store, failing, limits=RequestLimits(max_attempts=3))
    internal = b'{"retry_count":%d}'
    for attempts in (0, 1):
        await carried(rig, b'{"internal":%b,"request_kind":"redis","data":%b}' % (internal % attempts, body("a")))
    assert (await store.zcard(RETRIES), await rig.result_count()) == (2, 0)
    await carried(rig, b'{"internal":%b,"request_kind":"redis","data":%b}' % (internal % 2, body("a")))
    (result,) = await rig.results()
    if last:
        assert (result.status_code, result.payload) == (500, "no")
    else:
        assert (result.error_code, "server_error" in result.error_message) == (ErrorCode.UNDELIVERABLE, True)


async def test_a_deadline_too_far_ahead_is_an_invalid_request(store: Redis) -> None:
    rig = Rig(store, limits=RequestLimits(max_deadline_seconds=3_600.0))
    await carried(rig, body("a", deadline=253_402_300_799), body("b", deadline=int(time.time()) + 3_000))
    found = {result.id: result for result in await rig.results()}
    assert (found["a"].error_code, found["b"].status_code) == (ErrorCode.INVALID_REQUEST, 200)
    assert "MAX_DEADLINE_SECONDS" in found["a"].error_message


@pytest.mark.parametrize("size", [10, BLOCKING_BYTES])
async def test_only_a_large_retry_is_encoded_in_a_thread(
    store: Redis, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the event loop it would delay the renewal of leases."""
    threads: list[threading.Thread] = []

    def encode(member: bytes, **known: Any) -> bytes:
        threads.append(threading.current_thread())
        return encode_retry(member, **known)

    async def busy(_request: Request) -> Outcome:
        return Retry(60.0, "rejected")

    monkeypatch.setattr("handlers.poller.settlement.encode_retry", encode)
    rig = Rig(store, busy)
    rig.change(max_request_bytes=1_000_000)
    await carried(rig, body("a", text="x" * size))
    assert [thread is not threading.main_thread() for thread in threads] == [size == BLOCKING_BYTES]
    assert await store.zcard(RETRIES) == 1


async def test_a_retry_goes_to_the_retry_set(store: Redis) -> None:
    async def busy(_request: Request) -> Outcome:
        return Retry(60.0, "rejected")

    rig = Rig(store, busy)
    await carried(rig, body("a"))
    assert (await store.zcard(RETRIES), await rig.result_count()) == (1, 0)


@pytest.mark.parametrize(
    ("member", "request_id"),
    [(b'{"id":"a","deadline":"x","payload":{}}', "a"), (b'{"id":"b","deadline":5,"payload":[]}', "b")],
)
async def test_an_invalid_request_is_not_dispatched_and_gets_its_result(
    store: Redis, member: bytes, request_id: str
) -> None:
    rig = Rig(store)
    await carried(rig, member)
    (result,) = await rig.results()
    assert (result.id, result.error_code) == (request_id, ErrorCode.INVALID_REQUEST)
    assert rig.dispatched == []


@pytest.mark.parametrize("member", [b"", b"\xff\xfe", b"not json", b"[]", b'{"deadline":5}', b"{" * 9_000])
async def test_a_request_without_an_id_is_a_dead_letter(store: Redis, member: bytes) -> None:
    rig = Rig(store)
    await carried(rig, member)
    assert (await rig.result_count(), await store.hlen(f"{QUEUE}:dead")) == (0, 1)
    assert await claims_left(store, QUEUE) == {}


async def test_an_expired_request_gets_a_result_and_is_not_sent(store: Redis) -> None:
    rig = Rig(store)
    await carried(rig, body("late", deadline=time.time() - 1))
    (result,) = await rig.results()
    assert result.error_code == ErrorCode.DEADLINE_EXCEEDED
    assert rig.dispatched == []


async def test_a_request_cannot_set_labels_of_priority(store: Redis) -> None:
    rig = Rig(store, labels={"lane": "batch"}, withheld_labels=frozenset({"classification", "tier", "lane"}))
    internal = b'{"labels":{"classification":"reserved","tier":"interactive","lane":"interactive","team":"x"}}'
    member = b'{"internal":%b,"request_kind":"redis","data":%b}' % (internal, body("a"))
    await carried(rig, member)
    assert rig.dispatched[0].labels == {"lane": "batch", "team": "x"}


async def test_a_queues_own_labels_win_over_the_requests(store: Redis) -> None:
    rig = Rig(store, labels={"tier": "batch"})
    internal = b'{"labels":{"tier":"interactive","team":"x"}}'
    await carried(rig, b'{"internal":' + internal + b',"data":' + body("a") + b"}")
    assert rig.dispatched[0].labels == {"tier": "batch", "team": "x"}


async def test_a_defect_while_dispatching_is_a_retry(store: Redis) -> None:
    async def broken(_request: Request) -> Outcome:
        raise KeyError("a defect")

    rig = Rig(store, broken)
    await carried(rig, body("a"))
    assert (await store.zcard(RETRIES), await rig.result_count()) == (1, 0)


async def test_a_defect_while_settling_drops_only_that_claim(store: Redis) -> None:
    """It is no longer renewed: the lease ends, a delivery is counted, and finally it is dead-lettered."""

    async def unwritable(request: Request) -> Outcome:
        payload = "\ud800" if request.id == "bad" else "{}"
        return Answered(Result(request.id, 200, payload))

    rig = Rig(store, unwritable)
    await carried(rig, body("bad"), body("good"))
    assert [result.id for result in await rig.results()] == ["good"]
    assert rig.worker.held_claims() == []
    await end_leases(store, queue_keys(QUEUE).index)
    async with running(rig.ack_batcher.run()):
        reclaimed = await rig.queue.reclaim(10, 1)
        await rig.worker.dead_letter(reclaimed.dead, 5)
        await asyncio.wait_for(rig.ack_batcher.drained(), IN_TIME)
    assert (await rig.results())[1].error_code == ErrorCode.UNDELIVERABLE
    assert await store.hlen(f"{QUEUE}:dead") == 1


@pytest.mark.parametrize("stored", [b'{ "prompt" : 1.50 }', b"no JSON", None])
async def test_a_dead_letter_has_its_offloaded_payload(store: Redis, stored: bytes | None) -> None:
    """The payload's key is deleted with the result, so a requeued dead letter needs its payload inside."""
    key = "request-payload:a:t"
    internal = b'"internal":{"request_token":"t","payload_ref":"%s","labels":{"tier":"batch"}}' % key.encode()
    member = b'{%s,"request_kind":"redis","data":{"id":"a","deadline":1999999999}}' % internal
    rig = Rig(store)
    claims = await rig.claimed(member)
    if stored is not None:
        await store.set(key, stored)
    async with running(rig.ack_batcher.run()):
        await rig.worker.dead_letter(claims, 5)
        await asyncio.wait_for(rig.ack_batcher.drained(), IN_TIME)
    assert not await store.exists(key)

    (letter,) = [one async for one in DeadLetters(store, QUEUE).all()]
    if stored is None or b"{" not in stored:
        assert letter.member == member
        return
    assert await DeadLetters(store, QUEUE).requeue(letter)
    again = await rig.queue.claim(1)
    async with running(rig.ack_batcher.run()):
        rig.start(again)
        await wait_until_async(lambda: rig.worker.in_flight == 0, "its outcome")
        await asyncio.wait_for(rig.ack_batcher.drained(), IN_TIME)
    (request,) = rig.dispatched
    assert (request.payload, request.request_token, request.labels) == (stored, "t", {"tier": "batch"})
    assert [one.error_code for one in await rig.results()] == [ErrorCode.UNDELIVERABLE, ""]


async def endless(_request: Request) -> Outcome:
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


async def test_a_lost_lease_cancels_the_work_and_settles_nothing(store: Redis) -> None:
    rig = Rig(store, endless)
    kept, lost = await rig.claimed(body("kept"), body("lost"))
    async with running(rig.ack_batcher.run()):
        rig.start([kept, lost])
        await wait_until_async(lambda: len(rig.dispatched) == 2, "both to be in flight")
        rig.worker.lose([lost])
        assert rig.worker.held_claims() == [kept]
        await wait_until_async(lambda: rig.worker.in_flight == 1, "the work to end")
        await asyncio.wait_for(rig.ack_batcher.drained(), IN_TIME)
        assert rig.settled == []
        rig.worker.hand_back()
        await wait_until_async(lambda: rig.worker.in_flight == 0, "the other to end")
        await asyncio.wait_for(rig.ack_batcher.drained(), IN_TIME)
    assert len(rig.settled) == 1


@pytest.mark.parametrize("has_begun", [True, False])
async def test_hand_back_releases_claims_without_an_outcome_at_once(store: Redis, has_begun: bool) -> None:
    rig = Rig(store, endless)
    claims = await rig.claimed(*(body(f"r-{n}") for n in range(20)))
    async with running(rig.ack_batcher.run()):
        rig.start(claims)
        if has_begun:
            await wait_until_async(lambda: len(rig.dispatched) == 20, "all to be in flight")
        rig.worker.hand_back()
        await wait_until_async(lambda: rig.worker.in_flight == 0, "the work to end")
        await asyncio.wait_for(rig.ack_batcher.drained(), IN_TIME)
    members: list[Any] = await store.zrange(QUEUE, 0, -1, withscores=True)
    assert dict(members) == {claim.member: claim.score for claim in claims}
    assert await claims_left(store, QUEUE) == {}


async def test_each_slot_is_freed_exactly_once(store: Redis) -> None:
    freed: list[int] = []
    rig = Rig(store, on_freed=lambda: freed.append(len(rig.settled)))
    await carried(rig, *(body(f"r-{n}") for n in range(30)), b"broken", body("late", deadline=1))
    assert freed == list(range(1, 33))


async def test_a_request_cancelled_in_flight_was_attempted_and_one_that_waited_was_not(store: Redis) -> None:
    async def never(_request: Request) -> Outcome:
        await asyncio.Event().wait()
        raise AssertionError

    rig = Rig(store, never, route=ResultRoute("", None, RESULTS, has_details=True))
    (flying,) = await rig.claimed(body("flying"))
    (waiting,) = await rig.claimed(body("waiting"))
    async with running(rig.ack_batcher.run()):
        rig.start([flying])
        await wait_until_async(lambda: len(rig.dispatched) == 1, "it is in flight")
        rig.worker.cancel([flying])
        rig.start([msgspec.structs.replace(waiting, is_cancelled=True)])
        await wait_until_async(lambda: rig.worker.held_claims() == [], "both are answered")
    found = {result.id: result for result in await rig.results()}
    assert {result.error_code for result in found.values()} == {ErrorCode.CANCELLED}
    assert (found["flying"].attempts, found["waiting"].attempts) == (1, 0)
    assert found["flying"].gateway_seconds is not None
    assert found["waiting"].gateway_seconds is None


async def test_requests_that_wait_at_a_gate_are_counted_until_they_are_sent(store: Redis) -> None:
    opened, answered = asyncio.Event(), asyncio.Event()

    async def forward(request: Request, options: AttemptOptions) -> Outcome:
        await opened.wait()
        assert options.on_sending is not None
        options.on_sending()
        await answered.wait()
        return await answering(request)

    rig = Rig(store)
    rig.change(forward=forward)
    claims = await rig.claimed(body("a"), body("b"))
    async with running(rig.ack_batcher.run()):
        rig.start(claims)
        await wait_until_async(lambda: rig.worker.waiting == 2, "both to wait")
        opened.set()
        await wait_until_async(lambda: (rig.worker.waiting, rig.worker.in_flight) == (0, 2), "both to be sent")
        answered.set()
        await wait_until_async(lambda: rig.worker.held_claims() == [], "both to be answered")
    assert rig.worker.waiting == 0


_GROWING = b"\x01" * 100_000


@pytest.mark.parametrize("is_retry", [False, True])
async def test_large_results_are_encoded_as_the_byte_budget_has_room(store: Redis, is_retry: bool) -> None:
    """As JSON, each is six times as large as its answer; the last response of a retry may become a result."""

    async def growing(request: Request) -> Outcome:
        if is_retry:
            return Retry(1.0, "server_error", LastResponse(500, _GROWING))
        return Answered(answered_result(request.id, "", 200, _GROWING))

    rig = Rig(store, growing, limits=RequestLimits(max_attempts=1))
    rig.worker.budget = ByteBudget(8 * 1_300_000)
    share = rig.worker.budget.results
    rig.start(await rig.claimed(*(body(f"r-{number}") for number in range(7))))

    async def is_full() -> bool:
        return share.held > share.limit - 6 * len(_GROWING)

    await wait_until_async(is_full, "as many results as have room")
    assert len(rig.ack_batcher.added) == 2
    assert sum(map(size_of, rig.ack_batcher.added)) <= share.limit
    async with running(rig.ack_batcher.run()):

        async def are_stored() -> bool:
            return await rig.result_count() == 7

        await wait_until_async(are_stored, "7 results")
        await asyncio.wait_for(rig.ack_batcher.drained(), IN_TIME)
    assert share.held == rig.worker.budget.answers.held == 0


async def test_an_answer_that_waits_for_room_can_be_cancelled_or_handed_back(store: Redis) -> None:
    async def growing(request: Request) -> Outcome:
        return Answered(answered_result(request.id, "", 200, _GROWING))

    rig = Rig(store, growing)
    rig.worker.budget = ByteBudget(1_000)
    claims = await rig.claimed(*(body(f"r-{number}") for number in range(3)))
    rig.start(claims)

    async def has_settled() -> bool:
        return len(rig.ack_batcher.added) == 1

    await wait_until_async(has_settled, "the first result")
    (done,) = rig.ack_batcher.added
    cancelled, handed_back = (claim for claim in claims if claim != done.claim)
    rig.worker.cancel([cancelled])
    async with running(rig.ack_batcher.run()):
        rig.worker.hand_back()
        await asyncio.wait_for(rig.worker.idle(), IN_TIME)
    assert sorted(result.error_code for result in await rig.results()) == ["", ErrorCode.CANCELLED]
    assert (await rig.pending(), handed_back.member in await store.zrange(QUEUE, 0, -1)) == (1, True)
    assert rig.worker.budget.results.held == 0


async def test_a_defect_ends_a_request_after_a_few_attempts(store: Redis) -> None:
    """It would fail until its deadline otherwise."""

    async def broken(_request: Request) -> Outcome:
        raise ValueError("a defect")

    rig = Rig(store, broken)
    (first,) = await rig.claimed(body("a"))
    (last,) = await rig.claimed(encode_retry(body("b"), queue=QUEUE, attempt=2, score=first.score))
    async with running(rig.ack_batcher.run()):
        rig.start([first, last])
        await wait_until_async(lambda: len(rig.settled) == 2, "both settled")
    assert await rig.store.zcard(RETRIES) == 1
    (result,) = await rig.results()
    assert (result.id, result.error_code) == ("b", ErrorCode.UNDELIVERABLE)


async def test_dead_lettering_keeps_an_undecodable_member(store: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner died of dead-lettering itself: the second time nothing is decoded."""
    member = b'{"id":"x","deadline":1,"payload":{},"a":"' + rb"\"" * 32_000
    rig = Rig(store)
    (claim,) = await rig.claimed(member)

    def broken(*_args: object, **_options: object) -> Envelope:
        raise MemoryError

    monkeypatch.setattr("handlers.poller.worker.decode_member", broken)
    async with running(rig.ack_batcher.run()):
        await rig.worker.dead_letter([msgspec.structs.replace(claim, delivery_count=6)], 5)
        await asyncio.wait_for(rig.ack_batcher.drained(), IN_TIME)
    (result,) = await rig.results()
    assert (result.id, result.error_code) == ("x", ErrorCode.UNDELIVERABLE)
    (letter,) = [one async for one in DeadLetters(store, QUEUE).all()]
    assert letter.member == member
