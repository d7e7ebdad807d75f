"""All settlements are recorded, also those that arrive while others are being recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

import msgspec
import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from handlers.contract.request import Request
from handlers.contract.result import answered_result, encode_result
from handlers.demo.valkey import Valkey
from handlers.forward.outcome import Answered, Outcome
from handlers.poller.ack_batcher import FinishedLog, Release, Settlement
from handlers.redis_store.admin.status_board import FinishedRecord, FinishedRecords
from handlers.redis_store.connection import RedisOptions, connect
from handlers.redis_store.queue.queue import Ack, Claim, Nack
from tests.poller.rig import IN_TIME, QUEUE, RESULTS, RETRIES, Rig, body, claimer_of, running
from tests.redis_keys import claims_left, leaked_keys
from tests.waiting import wait_until_async


def ack_of(claim: Claim, payload: bytes = b"{}") -> Ack:
    result = encode_result(answered_result(claim.claim_key.decode(), "", 200, payload))
    return Ack(claim, result, RESULTS, None, claim.claim_key.decode(), "")


async def test_each_kind_of_settlement_has_its_effect_and_leaves_no_claim(store: Redis) -> None:
    rig = Rig(store)
    acked, nacked, released = await rig.claimed(body("a"), body("b"), body("c"))
    async with running(rig.ack_batcher.run()):
        for settlement in (ack_of(acked), Nack(nacked, nacked.member, 60.0), Release(released)):
            rig.ack_batcher.add(settlement, rig.worker.settled)
        await asyncio.wait_for(rig.ack_batcher.drained(), IN_TIME)
    assert [has_taken_effect for _, has_taken_effect in rig.settled] == [True, True, True]
    assert (await rig.result_count(), await store.zcard(RETRIES), await rig.pending()) == (1, 1, 1)
    assert await claims_left(store, QUEUE) == {}


async def test_a_settlement_that_arrives_during_a_batch_is_recorded_too(store: Redis) -> None:
    """Regression: a settlement that arrived during a call waited for the next settlement."""
    rig = Rig(store)
    claims = await rig.claimed(*(body(f"r-{n}") for n in range(50)))
    async with running(rig.ack_batcher.run()):
        rig.ack_batcher.add(ack_of(claims[0]), rig.worker.settled)
        for claim in claims[1:]:
            await asyncio.sleep(0)  # one step of the ack_batcher at a time: each lands at another place of its way
            rig.ack_batcher.add(ack_of(claim), rig.worker.settled)
        await asyncio.wait_for(rig.ack_batcher.drained(), IN_TIME)
    assert await rig.result_count() == 50
    assert await claims_left(store, QUEUE) == {}


async def test_many_concurrent_requests_are_all_answered_and_no_claim_is_left(store: Redis) -> None:
    """The same through the whole queue: answers in any order, with batches in flight all the time."""
    total = 1_500

    async def in_any_order(request: Request) -> Outcome:
        for _ in range(hash(request.id) % 7):
            await asyncio.sleep(0)
        return Answered(answered_result(request.id, "", 200, b"{}"))

    rig = Rig(store, in_any_order)
    pool = claimer_of(rig, slots=64)
    await rig.submit(*(body(f"r-{n}") for n in range(total)))
    async with running(rig.ack_batcher.run(), pool.run()):

        async def all_answered() -> bool:
            return await rig.result_count() == total

        await wait_until_async(all_answered, f"{total} results")
        await asyncio.wait_for(rig.ack_batcher.drained(), IN_TIME)
    assert {result.id for result in await rig.results()} == {f"r-{n}" for n in range(total)}
    assert rig.worker.held_claims() == []
    assert await claims_left(store, QUEUE) == {}
    assert await leaked_keys(store, [QUEUE], [RESULTS]) == []


async def test_a_settlement_of_a_stale_owner_is_refused_and_reported(store: Redis) -> None:
    rig = Rig(store)
    (claim,) = await rig.claimed(body("a"))
    await store.hset(f"{QUEUE}:claim-owners", mapping={claim.claim_key: b"another"})
    async with running(rig.ack_batcher.run()):
        rig.ack_batcher.add(ack_of(claim), rig.worker.settled)
        await asyncio.wait_for(rig.ack_batcher.drained(), IN_TIME)
    assert [has_taken_effect for _, has_taken_effect in rig.settled] == [False]
    assert await rig.result_count() == 0


async def test_results_are_recorded_while_redis_refuses_retries(store: Redis) -> None:
    await store.set(RETRIES, "of another type")
    rig = Rig(store)
    nacked, acked, released = await rig.claimed(body("a"), body("b"), body("c"))
    async with running(rig.ack_batcher.run()):
        rig.ack_batcher.add(Nack(nacked, nacked.member, 60.0), rig.worker.settled)
        await wait_until_async(lambda: RETRIES in rig.ack_batcher.refusal, "a refused retry")
        for settlement in (ack_of(acked), Release(released)):
            rig.ack_batcher.add(settlement, rig.worker.settled)
        await wait_until_async(lambda: len(rig.settled) == 2, "the others")
        assert (await rig.result_count(), await rig.pending()) == (1, 1)
        assert rig.ack_batcher.is_waiting_for_store
        assert RETRIES in rig.ack_batcher.refusal, "a success of another kind does not hide it"
        await store.delete(RETRIES)
        await asyncio.wait_for(rig.ack_batcher.drained(), IN_TIME)
    assert await store.zcard(RETRIES) == 1
    assert rig.ack_batcher.refusal == ""
    assert await claims_left(store, QUEUE) == {}


async def test_while_redis_does_not_answer_no_settlement_is_dropped(valkey: Valkey, store: Redis) -> None:
    impatient = connect(RedisOptions(valkey.url, timeout_seconds=0.5))
    rig, other = Rig(impatient), Rig(store)
    claims = await other.claimed(*(body(f"r-{n}") for n in range(20)))
    await store.client_pause(800)
    async with running(rig.ack_batcher.run()):
        for claim in claims:
            rig.ack_batcher.add(ack_of(claim), rig.worker.settled)
        await asyncio.wait_for(rig.ack_batcher.drained(), IN_TIME)
    assert len(rig.settled) == 20
    assert await other.result_count() == 20, "a reply that was lost makes no second result"
    assert await claims_left(store, QUEUE) == {}
    await impatient.aclose()


async def test_large_results_are_sent_in_several_commands(store: Redis) -> None:
    """A server disconnects a client that sends a gigabyte in one command, so nothing would ever be recorded."""
    rig = Rig(store)
    claims = await rig.claimed(*(body(f"r-{n}") for n in range(10)))
    before = (await store.info("commandstats"))["cmdstat_evalsha"]["calls"]
    async with running(rig.ack_batcher.run()):
        for claim in claims:
            rig.ack_batcher.add(ack_of(claim, b"x" * 8_000_000), rig.worker.settled)
        await asyncio.wait_for(rig.ack_batcher.drained(), IN_TIME)
    calls = (await store.info("commandstats"))["cmdstat_evalsha"]["calls"] - before
    assert await rig.result_count() == 10
    assert calls >= 3
    await store.flushall()


@pytest.mark.parametrize("count", [1, 256, 700])
async def test_a_burst_takes_few_round_trips(store: Redis, count: int) -> None:
    rig = Rig(store)
    claims = await rig.claimed(*(body(f"r-{n}") for n in range(count)))
    for claim in claims:
        rig.ack_batcher.add(ack_of(claim), rig.worker.settled)
    before = (await store.info("commandstats"))["cmdstat_evalsha"]["calls"]
    async with running(rig.ack_batcher.run()):
        await asyncio.wait_for(rig.ack_batcher.drained(), IN_TIME)
    calls = (await store.info("commandstats"))["cmdstat_evalsha"]["calls"] - before
    assert calls <= count // 256 + 2  # one more if the script must be loaded first
    assert await rig.result_count() == count


async def test_an_empty_batcher_is_drained() -> None:
    rig = Rig(Redis(socket_timeout=60))
    drained = asyncio.create_task(rig.ack_batcher.drained())
    await asyncio.wait({drained}, timeout=IN_TIME)
    assert drained.done()


CLAIM = Claim("requests", b"{}", 1.0, b"key", b"owner")


class WrittenRecords:
    """Takes records; fails while `is_down`."""

    def __init__(self) -> None:
        self.written: list[tuple[str, FinishedRecord]] = []
        self.is_down = False

    async def write(self, records: Sequence[tuple[str, FinishedRecord]]) -> int:
        if self.is_down:
            raise RedisConnectionError("down")
        self.written += records
        return len(self.written)


def ack(request_id: str = "r", outcome: str = "HTTP 200", result: bytes = b"{}", dead: bytes | None = None) -> Ack:
    return Ack(CLAIM, result, "results", None, request_id, "token", dead=dead, outcome=outcome)


@pytest.fixture
def written() -> WrittenRecords:
    return WrittenRecords()


@pytest.fixture
def finished(written: WrittenRecords) -> FinishedLog:
    return FinishedLog(cast(FinishedRecords, written), lambda: 5.0)


async def test_a_final_result_is_recorded_with_its_list(finished: FinishedLog, written: WrittenRecords) -> None:
    finished.note(ack(), True)
    finished.note(ack("d", "UNDELIVERABLE", dead=b"{}"), True)
    await finished.tick()
    assert written.written == [
        ("r", FinishedRecord("token", "HTTP 200", 5.0, "requests", "results", False)),
        ("d", FinishedRecord("token", "UNDELIVERABLE", 5.0, "requests", "results", True)),
    ]


@pytest.mark.parametrize(
    "settlement",
    [Release(CLAIM), Nack(CLAIM, b"{}", 1.0), ack(""), ack(outcome="DUPLICATE"), ack(result=b"")],
    ids=["release", "nack", "no id", "duplicate", "no result"],
)
async def test_settlements_that_do_not_end_a_request_are_not_recorded(
    finished: FinishedLog, written: WrittenRecords, settlement: Settlement
) -> None:
    finished.note(settlement, True)
    await finished.tick()
    assert written.written == []


@pytest.mark.parametrize("name", ["request_id", "request_token", "result_queue_name"])
async def test_a_request_with_long_names_is_not_recorded_beside_others(
    finished: FinishedLog, written: WrittenRecords, name: str
) -> None:
    finished.note(msgspec.structs.replace(ack("long"), **{name: "x" * 5_000}), True)
    finished.note(ack("ordinary"), True)
    await finished.tick()
    assert [request_id for request_id, _ in written.written] == ["ordinary"]


async def test_records_wait_while_redis_is_down_and_the_oldest_are_dropped(
    finished: FinishedLog, written: WrittenRecords
) -> None:
    written.is_down = True
    for number in range(10_100):
        finished.note(ack(f"r{number}"), True)
    with pytest.raises(RedisConnectionError):
        await finished.tick()
    finished.note(ack("last"), True)
    written.is_down = False
    await finished.tick()
    ids = [request_id for request_id, _ in written.written]
    assert (ids[0], ids[-1], len(ids)) == ("r101", "last", 10_000)
