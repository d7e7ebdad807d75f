"""Claim, renew, ack, nack and release on a real server: one owner, one result, no keys left."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from handlers.contract.request import encode_retry
from handlers.contract.result import answered_result, encode_result
from handlers.redis_store.idempotency.idempotency import IdRecord
from handlers.redis_store.queue.queue import Claim, Nack, QueueOptions, RedisQueue
from handlers.redis_store.results.payloads import StoredPayload
from tests.redis_store.queue.queueing import DEADLINE, LEASE_SECONDS, Bench, body, envelope
from tests.waiting import CLOCK_SET_SECONDS


async def test_claims_the_lowest_score_first_and_no_more_than_asked(bench: Bench) -> None:
    for score in (30, 10, 20.5, 20.25):
        await bench.put(body(f"at-{score}"), score)

    claims = await bench.queue.claim(3)

    assert [claim.score for claim in claims] == [10, 20.25, 20.5]
    assert [claim.member for claim in claims] == [body("at-10"), body("at-20.25"), body("at-20.5")]
    assert await bench.pending() == [(body("at-30"), 30)]


async def test_a_lease_ends_by_the_servers_clock(bench: Bench) -> None:
    before = await bench.now()
    claim = await bench.claimed(body("a"))
    after = await bench.now()

    ends = await bench.redis.zscore(bench.keys.index, claim.claim_key)

    assert ends is not None
    assert before - CLOCK_SET_SECONDS <= ends - LEASE_SECONDS <= after + CLOCK_SET_SECONDS
    assert before - CLOCK_SET_SECONDS <= bench.queue.now() <= await bench.now() + CLOCK_SET_SECONDS


async def test_an_empty_queue_gives_nothing_and_makes_no_key(bench: Bench) -> None:
    assert await bench.queue.claim(5) == []
    assert await bench.all_keys() == set()


async def test_claims_of_expired_requests_leave_the_others(bench: Bench) -> None:
    now = await bench.now()
    await bench.put(b"late", now - 1)
    await bench.put(b"in time", now + 1_800)

    claims = await bench.queue.claim(5, only_expired=True)

    assert [claim.member for claim in claims] == [b"late"]
    assert await bench.queue.claim(5, only_expired=True) == []
    assert [member for member, _ in await bench.pending()] == [b"in time"]


@pytest.mark.parametrize(("position", "claimed"), [(0, "new-30"), (0.5, "new-60"), (1, "new-60")])
async def test_a_claim_without_retries_finds_other_requests_after_and_before_its_position(
    bench: Bench, position: float, claimed: str
) -> None:
    for score in range(1, 101):
        request = body(f"again-{score}")
        await bench.put(encode_retry(request, queue=bench.queue_name, attempt=1, score=score), score)
    for score in (30, 60):
        await bench.put(body(f"new-{score}"), score)

    [claim] = await bench.queue.claim(1, most_retries=0, position=position)
    [other] = await bench.queue.claim(1, most_retries=0, position=position)
    [retry] = await bench.queue.claim(1, most_retries=0, position=position)

    assert {claim.member, other.member} == {body("new-30"), body("new-60")}
    assert retry.is_retry
    assert retry.score == pytest.approx(1 + 99 * position, abs=1)
    assert claim.member == body(claimed)


async def test_the_claim_key_is_the_references(bench: Bench) -> None:
    members = [
        body("bare"),
        envelope("plain"),
        envelope("with", "t-1"),
        b"\xff no json",
        b"[1]",
        b'{"id": 7}',
    ]
    for score, member in enumerate(members):
        await bench.put(member, score)

    keys = [claim.claim_key for claim in await bench.queue.claim(10)]

    assert keys[:3] == [b"bare", b"plain", b"with\0t-1"]
    assert all(len(key) == 40 for key in keys[3:])
    assert len(set(keys)) == len(members)


async def test_an_id_queued_twice_without_a_token_has_two_claims_and_two_results(bench: Bench) -> None:
    await bench.put(body("same", n=1), 1)
    await bench.put(body("same", n=2), 2)

    claims = await bench.queue.claim(2)

    assert len({claim.claim_key for claim in claims}) == 2
    assert await bench.queue.ack([bench.ack_of(c, c.member) for c in claims]) == [True, True]
    assert await bench.result_texts() == [body("same", n=2), body("same", n=1)]
    assert await bench.all_keys() == {bench.results}


async def test_two_pollers_never_claim_the_same(bench: Bench) -> None:
    for n in range(200):
        await bench.put(body(f"r-{n}"), n)

    shares = await asyncio.gather(*(bench.owner().claim(20) for _ in range(10)))

    members = [claim.member for share in shares for claim in share]
    assert len(members) == len(set(members)) == 200


async def _taken_over(bench: Bench) -> tuple[Claim, Claim]:
    """A stale owner's claim, and that of the poller that has the request now."""
    stale = await bench.claimed(envelope("r", "t-1"))
    await bench.end_leases()
    await bench.queue.reclaim(10, max_deliveries=5)
    return stale, (await bench.owner().claim(1))[0]


async def test_i7_a_stale_owner_changes_nothing(bench: Bench) -> None:
    stale, live = await _taken_over(bench)
    await bench.redis.set("request-active:r", "t-1")
    held = await bench.snapshot()

    late_ack = bench.ack_of(stale, request_token="t-1", dead=b"{}", result_ttl_seconds=5)
    assert await bench.queue.ack([late_ack]) == [False]
    assert await bench.queue.nack([Nack(stale, b"again", 0)]) == [False]
    assert await bench.queue.release([stale]) == [False]
    assert await bench.queue.renew([stale]) == [stale]

    assert await bench.snapshot() == held
    assert await bench.queue.renew([live]) == []


async def test_a_stale_claim_in_a_batch_does_not_stop_the_others(bench: Bench) -> None:
    stale, live = await _taken_over(bench)
    other = await bench.claimed(body("other"))

    acked = await bench.queue.ack([bench.ack_of(stale), bench.ack_of(live), bench.ack_of(other)])

    assert acked == [False, True, True]
    assert len(await bench.result_texts()) == 2


async def test_f25_an_ack_repeated_after_a_lost_reply_gets_the_same_answer(bench: Bench) -> None:
    stale, live = await _taken_over(bench)
    batch = [bench.ack_of(stale), bench.ack_of(live), bench.ack_of(await bench.claimed(body("other")))]

    first = await bench.queue.ack(batch)

    assert await bench.queue.ack(batch) == first == [False, True, True]
    assert await bench.result_texts() == [b"result", b"result"]
    assert await bench.all_keys() == {bench.results}


async def test_f25_the_answer_of_a_batch_is_not_given_to_another_batch(bench: Bench) -> None:
    ack = bench.ack_of(await bench.claimed(body("r")))
    assert await bench.queue.ack([ack]) == [True]

    assert await bench.queue.ack([ack, ack]) == [False, False]
    assert await bench.queue.nack([Nack(ack.claim, b"again", 0)]) == [False]
    assert await bench.result_texts() == [b"result"]
    assert await bench.all_keys() == {bench.results}


async def test_results_are_newest_first(bench: Bench) -> None:
    for n in range(3):
        claim = await bench.claimed(body(f"r-{n}"))
        await bench.queue.ack([bench.ack_of(claim, str(n).encode())])

    assert await bench.result_texts() == [b"2", b"1", b"0"]


async def test_an_ack_ends_the_submission_it_belongs_to(bench: Bench) -> None:
    await bench.redis.mset({"request-active:r": "t-1", "request-cancel:r": "t-1"})
    claim = await bench.claimed(envelope("r", "t-1"))

    await bench.queue.ack([bench.ack_of(claim, request_token="t-1")])

    assert await bench.all_keys() == {bench.results}


@pytest.mark.parametrize("token", ["t-1", ""])
async def test_an_ack_leaves_a_newer_submission_of_the_id(bench: Bench, token: str) -> None:
    await bench.redis.mset({"request-active:r": "t-2", "request-cancel:r": "t-2"})
    claim = await bench.claimed(envelope("r", token))

    await bench.queue.ack([bench.ack_of(claim, request_token=token)])

    assert await bench.all_keys() == {bench.results, "request-active:r", "request-cancel:r"}


@pytest.mark.parametrize(
    ("token", "reference", "is_deleted"),
    [
        ("t", "request-payload:r:t", True),
        ("", "request-payload:r:t", True),
        ("t-12", "request-payload:r:t", True),
        ("t-u", "request-payload:r:t", False),
        ("t-", "request-payload:r:t", False),
        ("t", "request-payload:r:another", False),
        ("t", "request-payload:another:t", False),
        ("", "request-payload:rest:t", False),
        ("t", "somebody-elses", False),
    ],
)
async def test_an_ack_deletes_the_requests_own_payload_and_no_other_key(
    bench: Bench, token: str, reference: str, is_deleted: bool
) -> None:
    await bench.redis.set(reference, "{}")
    claim = await bench.claimed(envelope("r", token))

    acks = [bench.ack_of(claim, request_token=token, payload_ref=reference)]
    assert await bench.queue.ack(acks) == [True]

    assert await bench.all_keys() == {bench.results} | (set() if is_deleted else {reference})


async def test_a_result_list_expires_only_if_an_expiry_is_set(bench: Bench) -> None:
    claim = await bench.claimed(body("r"))
    await bench.queue.ack([bench.ack_of(claim)])
    assert await bench.redis.ttl(bench.results) == -1

    claim = await bench.claimed(body("s"))
    await bench.queue.ack([bench.ack_of(claim, result_ttl_seconds=10_000)])
    assert 9_900 < await bench.redis.ttl(bench.results) <= 10_000


async def test_a_result_list_of_another_type_does_not_lose_the_result(bench: Bench) -> None:
    await bench.redis.set("no-list", "text")
    first, second = await bench.claimed(body("r")), await bench.claimed(body("s"))

    acks = [bench.ack_of(first, b"1", result_queue_name="no-list"), bench.ack_of(second, b"2")]
    assert await bench.queue.ack(acks) == [True, True]

    assert await bench.result_texts() == [b"1", b"2"]
    assert await bench.redis.get("no-list") == b"text"
    assert await bench.all_keys() == {bench.results, "no-list"}


async def test_an_expiry_in_the_past_deletes_no_results(bench: Bench) -> None:
    claim = await bench.claimed(body("r"))
    assert await bench.queue.ack([bench.ack_of(claim, result_ttl_seconds=-1)]) == [True]
    assert await bench.result_texts() == [b"result"]


@contextlib.asynccontextmanager
async def restricted_queue(bench: Bench, keys: str) -> AsyncIterator[RedisQueue]:
    """The queue of a poller whose rights cover its own keys, the result list, and the pattern `keys`."""
    own = [f"{bench.queue_name}*", bench.results, keys]
    await bench.redis.acl_setuser("poller", enabled=True, passwords=["+p"], keys=own, categories=["+@all"])
    server = bench.redis.connection_pool.connection_kwargs
    async with Redis(
        host=server["host"],
        port=server["port"],
        username="poller",
        password="p",
        socket_timeout=60,
        socket_connect_timeout=60,
    ) as poller:
        yield RedisQueue(poller, bench.queue_name, QueueOptions(bench.retries, bench.results))
    await bench.redis.acl_deluser("poller")


async def test_a_list_that_the_acl_refuses_delays_no_other_result(bench: Bench) -> None:
    """A request that names a list which is not for us: its batch is recorded, its own result in the default list."""
    async with restricted_queue(bench, "request-*") as queue:
        await bench.put(body("named"), 1)
        await bench.put(body("plain"), 2)
        named, plain = await queue.claim(2)

        acks = [bench.ack_of(named, b"1", result_queue_name="somebody-elses"), bench.ack_of(plain, b"2")]
        assert await queue.ack(acks) == [True, True]

    assert sorted(await bench.result_texts()) == [b"1", b"2"]
    assert await bench.all_keys() == {bench.results}


async def test_results_keep_their_payloads_if_the_acl_refuses_the_payload_keys(bench: Bench) -> None:
    async with restricted_queue(bench, "request-[acp]*") as queue:
        await bench.put(body("r"))
        (claim,) = await queue.claim(1)

        reference = b'{"id":"r","status_code":200,"payload_ref":"result-payload:r:1"}'
        stored, id_record = StoredPayload("result-payload:r:1", b"large", 60), IdRecord("r", "t", 60)
        assert await queue.ack([bench.ack_of(claim, reference, stored=stored, id_record=id_record)]) == [True]

    assert await bench.result_texts() == [encode_result(answered_result("r", "", 200, b"large"))]


async def test_without_any_list_the_claim_is_kept(bench: Bench) -> None:
    await bench.redis.set(bench.results, "text")
    claim = await bench.claimed(body("r"))

    with pytest.raises(ResponseError, match=f"WRONGTYPE LPUSH {bench.results}"):
        await bench.queue.ack([bench.ack_of(claim)])

    assert await bench.queue.renew([claim]) == []


async def test_a_dead_record_is_kept_with_or_without_a_result(bench: Bench) -> None:
    reported, unreported = await bench.claimed(body("r")), await bench.claimed(b"no json")

    acks = [bench.ack_of(reported, b"error", dead=b"1"), bench.ack_of(unreported, b"", dead=b"2")]
    assert await bench.queue.ack(acks) == [True, True]

    assert await bench.result_texts() == [b"error"]
    assert sorted((await bench.redis.hgetall(bench.keys.dead)).values()) == [b"1", b"2"]
    assert await bench.all_keys() == {bench.results, bench.keys.dead}


async def test_a_nack_waits_by_the_servers_clock(bench: Bench) -> None:
    claim = await bench.claimed(body("r"))
    before = await bench.now()
    assert await bench.queue.nack([Nack(claim, b"again", 600.5)]) == [True]
    after = await bench.now()

    due = await bench.redis.zscore(bench.retries, b"again")

    assert due is not None
    assert before + 600.5 - CLOCK_SET_SECONDS <= due <= after + 600.5 + CLOCK_SET_SECONDS
    assert await bench.promote() == 0
    assert await bench.all_keys() == {bench.retries}


async def test_f25_a_nack_sent_twice_queues_one_retry_and_gets_the_same_answer(bench: Bench) -> None:
    nack = Nack(await bench.claimed(body("r")), b"again", 0)

    assert await bench.queue.nack([nack]) == [True]
    await bench.promote()
    assert await bench.queue.nack([nack]) == [True]

    assert await bench.redis.zcard(bench.retries) == 0
    assert [member for member, _ in await bench.pending()] == [b"again"]


@pytest.mark.parametrize("score", [DEADLINE, 1_700_000_000.123456, DEADLINE + 5 / 2**21, 0.1, -3.0])
async def test_a_retry_returns_with_the_score_it_had(bench: Bench, score: float) -> None:
    claim = await bench.claimed(envelope("r", "t", enqueue_seq=5), score)
    member = encode_retry(claim.member, queue=bench.queue_name, attempt=1, score=claim.score)
    await bench.queue.nack([Nack(claim, member, 60)])
    await bench.make_due()

    assert await bench.promote() == 1
    assert await bench.pending() == [(member, score)]


@pytest.mark.parametrize("score", [DEADLINE + 5 / 2**21, 0.1, 1e17, float("inf")])
async def test_released_requests_are_pending_as_they_were(bench: Bench, score: float) -> None:
    claim = await bench.claimed(b"\xff\x00 as it was", score)

    assert await bench.queue.release([claim]) == [True]
    assert await bench.queue.release([claim]) == [False]

    assert await bench.pending() == [(b"\xff\x00 as it was", score)]
    assert await bench.all_keys() == {bench.queue_name}


async def test_scripts_are_loaded_again_after_the_server_lost_them(bench: Bench) -> None:
    for request_id in ("r", "s"):
        await bench.redis.script_flush()
        claim = await bench.claimed(body(request_id))
        await bench.redis.script_flush()
        assert await bench.queue.renew([claim]) == []
        await bench.redis.script_flush()
        assert await bench.queue.ack([bench.ack_of(claim)]) == [True]
    await bench.redis.script_flush()
    assert await bench.promote() == 0
    await bench.redis.script_flush()
    assert (await bench.queue.reclaim(10, 5)).returned == 0
