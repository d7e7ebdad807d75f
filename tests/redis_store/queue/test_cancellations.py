"""Cancelled requests are found by name in any place, after they have moved, and from any producer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as LostConnection

from handlers.contract.request import encode_retry
from handlers.demo.valkey import Valkey
from handlers.redis_store.keys import CANCELLATIONS, active_key, cancel_key
from handlers.redis_store.queue.cancellations import (
    AGAIN_SECONDS,
    AT_ONCE,
    SWEPT,
    Cancellation,
    Cancellations,
    CancelSearch,
    ForeignCancellations,
    searches,
)
from handlers.redis_store.queue.queue import Nack, Retries
from handlers.redis_store.submit.submissions import Submissions
from tests.redis_store.queue.queueing import DEADLINE, Bench, envelope, recalled, recalled_retries


async def submitted(bench: Bench, request_id: str, token: str, score: float) -> bytes:
    await bench.redis.set(active_key(request_id), token, exat=DEADLINE)
    return await bench.put(envelope(request_id, token), score)


async def cancelled(bench: Bench, *ids: str) -> None:
    assert await Submissions(bench.redis).cancel([(one, "") for one in ids]) == [True] * len(ids)


class Clock:
    """A steady clock that a test moves."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.mark.parametrize(
    ("key", "score"),
    [
        (b"r\0ab-0", 50.0),
        (b"r\0ab-1", 50 + 1 / 2**21),
        (b"r\0ab-99999999", 50 + (2**21 - 1) / 2**21),
        (b"r-1\0abcdef", None),
        (b"r\0" + b"123", None),
        (b"r\0ab-cd", None),
        (b"r\0d01e3c04-000000000123", None),
    ],
)
def test_our_clients_tokens_end_with_their_sequence(key: bytes, score: float | None) -> None:
    assert Cancellation(key, 50).score() == score


def test_requests_of_other_clients_are_searched_in_the_seconds_of_their_deadlines() -> None:
    found = [
        Cancellation(b"r\0a", 50),
        Cancellation(b"s\0b", 90),
        Cancellation(b"t\0c", 54),
        Cancellation(b"u\0-1", 9),
    ]
    ours, *wide = searches(found)
    assert ours == CancelSearch([(repr(9 + 1 / 2**21),) * 2], [b"u\0-1"])
    assert wide == [
        CancelSearch([("48", "(57")], [b"r\0a", b"t\0c"]),
        CancelSearch([("88", "(93")], [b"s\0b"]),
    ]


def test_cancellations_are_split_into_bounded_searches() -> None:
    ours = [Cancellation(f"r\0t-{n}".encode(), 50) for n in range(1_201)]
    others = [Cancellation(f"r\0t{n}".encode(), 50 + n // 100) for n in range(1_201)]
    sizes = [len(search.names) for search in searches([*ours, *others])]
    assert sizes == [AT_ONCE, AT_ONCE, 201] * 2
    assert list(searches([])) == []


async def test_each_cancellation_is_returned_when_it_is_new_and_a_few_times_later(store: Redis) -> None:
    clock = Clock()
    cancellations = Cancellations(store, clock)
    now = time.time()
    await store.zadd(CANCELLATIONS, {b"50\0r\0t-1": now, b"no entry": now + 1, b"51\0s\0t-1": now + 2})
    reported = [Cancellation(b"r\0t-1", 50), Cancellation(b"s\0t-1", 51)]
    assert await cancellations.due() == reported
    cancellations.searched()
    assert await cancellations.due() == []
    cancellations.searched()
    for seconds in AGAIN_SECONDS:
        clock.seconds = 100.0 + seconds
        assert await cancellations.due() == reported
        cancellations.searched()
    clock.seconds += 1_000
    assert await cancellations.due() == []


async def test_a_long_list_is_read_in_pages(store: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries of one call have one time, so a page may end among them."""
    monkeypatch.setattr("handlers.redis_store.queue.cancellations.PAGE_ENTRIES", 3)
    for number in range(11):
        await store.zadd(CANCELLATIONS, {b"%d\0r-%02d\0t" % (DEADLINE, number): 100 + number // 5})
    await Cancellations(store).due()  # loads the script
    await store.config_resetstat()
    assert [one.key for one in await Cancellations(store).due()] == [b"r-%02d\0t" % number for number in range(11)]
    assert (await store.info("commandstats"))["cmdstat_evalsha"]["calls"] == 5


async def test_the_rest_of_a_long_list_is_read_next_time(store: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handlers.redis_store.queue.cancellations.MOST_NEW_BYTES", 50)
    monkeypatch.setattr("handlers.redis_store.queue.cancellations.PAGE_ENTRIES", 2)
    entries = [b"%d\0r-%02d\0t" % (DEADLINE, number) for number in range(11)]
    await store.zadd(CANCELLATIONS, {entry: 100 + number // 5 for number, entry in enumerate(entries)})
    cancellations = Cancellations(store)
    seen: list[bytes] = []
    while new := await cancellations.due():
        assert len(new) == min(4, 11 - len(seen))
        assert new == await cancellations.due(), "until they are searched"
        cancellations.searched()
        seen += [one.key for one in new]
    assert seen == [b"r-%02d\0t" % number for number in range(11)]
    await store.delete(CANCELLATIONS)
    await store.zadd(CANCELLATIONS, {b"50\0new\0t": 200})
    assert [one.key for one in await cancellations.due()] == [b"new\0t"], "those before were removed"


async def test_an_entry_of_many_megabytes_stays_in_redis(store: Redis) -> None:
    now = time.time() - 5
    await store.zadd(CANCELLATIONS, {b"50\0a\0" + bytes(10_000_000): now, b"60\0b\0t": now + 1})
    sent = (await store.info("stats"))["total_net_output_bytes"]
    assert [one.key for one in await Cancellations(store).due()] == [b"b\0t"]
    assert (await store.info("stats"))["total_net_output_bytes"] - sent < 100_000


async def test_a_flood_of_cancellations_is_not_kept_to_be_searched_again(
    store: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handlers.redis_store.queue.cancellations.MOST_AGAIN_BYTES", 1)
    clock = Clock()
    cancellations = Cancellations(store, clock)
    for number in range(2):
        await store.zadd(CANCELLATIONS, {b"50\0r-%d\0t-1" % number: time.time()})
        assert [one.key for one in await cancellations.due()] == [b"r-%d\0t-1" % number]
        cancellations.searched()
    clock.seconds += AGAIN_SECONDS[0]
    assert [one.key for one in await cancellations.due()] == [b"r-0\0t-1"]


async def test_an_old_cancellation_is_returned_once(store: Redis) -> None:
    clock = Clock()
    cancellations = Cancellations(store, clock)
    await store.zadd(CANCELLATIONS, {b"50\0r\0t-1": time.time() - 600})
    assert len(await cancellations.due()) == 1
    cancellations.searched()
    clock.seconds += AGAIN_SECONDS[0]
    assert await cancellations.due() == []


async def test_cancellations_are_returned_again_until_they_are_searched(store: Redis) -> None:
    cancellations = Cancellations(store)
    await store.zadd(CANCELLATIONS, {b"50\0r\0t-1": 1})
    assert len(await cancellations.due()) == 1
    assert len(await cancellations.due()) == 1, "no poller has searched for it yet"


@pytest.mark.parametrize("entry", [b"9" * 5_000 + b"\0a\0t", b"\xb2\0a\0t", b"1_0\0a\0t", b"", b"\0\0"])
async def test_an_invalid_entry_hides_no_other(store: Redis, entry: bytes) -> None:
    await store.zadd(CANCELLATIONS, {entry: time.time() - 5, b"60\0b\0t": time.time() - 5})
    assert [one.key for one in await Cancellations(store).due()] == [b"b\0t"]


@pytest.mark.parametrize("score", ["+inf", 2**62, 4_000_000_000])
async def test_an_entry_with_a_time_in_the_future_hides_no_later_one(store: Redis, score: float) -> None:
    cancellations = Cancellations(store)
    await store.zadd(CANCELLATIONS, {b"50\0a\0t": score})
    await cancellations.due()
    cancellations.searched()
    await store.zadd(CANCELLATIONS, {b"60\0b\0t": time.time()})
    assert b"b\0t" in [one.key for one in await cancellations.due()]


async def test_each_cancelled_submission_of_a_reused_id_is_claimed(bench: Bench) -> None:
    """`request-cancel:<id>` has room for one token alone: the first one's is gone with the second."""
    await submitted(bench, "r", "t-1", DEADLINE + 1 / 2**21)
    await cancelled(bench, "r")
    await submitted(bench, "r", "t-2", DEADLINE + 2 / 2**21)
    await cancelled(bench, "r")
    await submitted(bench, "r", "t-3", DEADLINE + 3 / 2**21)

    claims = await recalled(bench.redis, bench.owner())

    assert {claim.claim_key for claim in claims} == {b"r\0t-1", b"r\0t-2"}
    assert all(claim.is_cancelled for claim in claims)
    assert [claim.claim_key for claim in await bench.queue.claim(10)] == [b"r\0t-3"]


@pytest.mark.parametrize(("token", "count"), [("t-700", AT_ONCE - 1), ("5f2c", 3 * AT_ONCE)])
async def test_a_cancelled_request_is_found_among_many_with_the_same_score(
    bench: Bench, token: str, count: int
) -> None:
    score = DEADLINE + 700 / 2**21
    await bench.redis.zadd(bench.queue_name, {envelope(f"a{n:04}", f"other-{n}"): score for n in range(count)})
    await submitted(bench, "z", token, score)
    await cancelled(bench, "z")

    (claim,) = await recalled(bench.redis, bench.owner())

    assert claim.claim_key == b"z\0" + token.encode()
    assert await bench.redis.zcard(bench.queue_name) == count


async def test_each_cancelled_request_of_other_producers_is_claimed(bench: Bench) -> None:
    """No request is skipped when earlier ones are removed."""
    ids = [f"r-{n}" for n in range(2_500)]
    for number, request_id in enumerate(ids):
        await submitted(bench, request_id, f"token{number}", DEADLINE + number / 2**21)
    await cancelled(bench, *ids[::2])

    claims = await recalled(bench.redis, bench.owner())

    assert {claim.claim_key for claim in claims} == {f"r-{n}\0token{n}".encode() for n in range(0, 2_500, 2)}
    assert await bench.redis.zcard(bench.queue_name) == 1_250


async def test_thousands_of_cancelled_requests_are_claimed_with_their_scores(bench: Bench) -> None:
    ids = [f"r-{n}" for n in range(1, 3_001)]
    for number, request_id in enumerate(ids, 1):
        await submitted(bench, request_id, f"t-{number}", DEADLINE + number / 2**21)
    await cancelled(bench, *ids)

    claims = await recalled(bench.redis, bench.owner())

    assert {claim.claim_key: claim.score for claim in claims} == {
        f"r-{n}\0t-{n}".encode(): DEADLINE + n / 2**21 for n in range(1, 3_001)
    }


async def test_a_request_that_moves_during_a_search_is_found_by_a_later_one(bench: Bench) -> None:
    clock = Clock()
    owner = bench.owner()
    of_queue, of_retries = Cancellations(bench.redis, clock), Cancellations(bench.redis, clock)
    retries = Retries(bench.redis, bench.retries, bench.queue_name)
    await submitted(bench, "r", "t-1", DEADLINE + 1 / 2**21)
    (claim,) = await owner.claim(1)
    await cancelled(bench, "r")
    assert (
        await recalled(bench.redis, owner, of_queue),
        await recalled_retries(bench.redis, retries, of_retries),
    ) == ([], 0), "it is claimed, and its nack on the way"
    member = encode_retry(claim.member, queue=claim.queue, attempt=1, score=claim.score)
    assert await owner.nack([Nack(claim, member, 3_000.0)]) == [True]

    clock.seconds += AGAIN_SECONDS[0]
    assert await recalled_retries(bench.redis, retries, of_retries) == 1
    (again,) = await recalled(bench.redis, owner, of_queue)

    assert (again.member, again.score, again.is_cancelled) == (member, claim.score, True)
    assert await bench.redis.zcard(bench.retries) == 0


async def test_a_retry_that_names_a_key_of_another_type_is_not_lost(bench: Bench) -> None:
    for name in (bench.retries, bench.keys.index):
        member = envelope(name, "t", request_queue_name=name)
        await bench.redis.set(active_key(name), "t", exat=DEADLINE)
        await bench.redis.zadd(bench.retries, {member: DEADLINE})
        await cancelled(bench, name)
    assert await recalled_retries(bench.redis, Retries(bench.redis, bench.retries, bench.queue_name)) == 2
    assert len(await recalled(bench.redis, bench.owner())) == 2


@pytest.mark.parametrize("due", [[DEADLINE] * 9, range(DEADLINE, DEADLINE + 9)])
async def test_a_retry_that_cannot_move_hides_no_other(
    bench: Bench, due: Sequence[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handlers.redis_store.queue.queue.SCAN_COUNT", 2)
    await bench.redis.set("no queue", "x")
    for number in range(9):
        queue = "other" if number % 2 else "no queue"
        member = envelope(f"r-{number}", "t", request_queue_name=queue)
        await bench.redis.set(active_key(f"r-{number}"), "t", exat=DEADLINE)
        await bench.redis.zadd(bench.retries, {member: due[number]})
    await cancelled(bench, *(f"r-{number}" for number in range(9) if number != 3))
    assert await recalled_retries(bench.redis, Retries(bench.redis, bench.retries, "no queue")) == 3
    assert await bench.redis.zcard("other") == 3
    left: Any = await bench.redis.zrange(bench.retries, 0, -1, withscores=True)
    assert dict(left) == {
        envelope(f"r-{n}", "t", request_queue_name="other" if n % 2 else "no queue"): due[n] for n in (0, 2, 3, 4, 6, 8)
    }


async def test_a_cancelled_claim_of_a_crashed_owner_is_found_when_its_lease_expires(bench: Bench) -> None:
    clock = Clock()
    owner = bench.owner()
    cancellations = Cancellations(bench.redis, clock)
    await submitted(bench, "r", "t-1", DEADLINE + 1 / 2**21)
    await bench.owner().claim(1)
    await cancelled(bench, "r")
    assert await recalled(bench.redis, owner, cancellations) == []
    await bench.end_leases()
    assert (await owner.reclaim(10, 5)).returned == 1

    clock.seconds += AGAIN_SECONDS[-1]
    (claim,) = await recalled(bench.redis, owner, cancellations)
    assert (claim.delivery_count, claim.is_cancelled) == (1, True)


async def marked(store: Redis, request_id: str, live: str, cancelled_token: str) -> None:
    """As a producer of the reference submits and cancels: two keys, and no list."""
    await store.set(active_key(request_id), live, px=3_600_000)
    await store.set(cancel_key(request_id), cancelled_token, ex=604_800)


async def test_cancellations_of_other_producers_are_put_into_the_list(store: Redis) -> None:
    await marked(store, "r", "t", "t")
    await marked(store, "s", "new", "old")
    await store.set(cancel_key("over"), "t")
    for number in range(1_500):
        await marked(store, f"n-{number}", "t", "t")
    expires_ms = await store.pexpiretime(active_key("r"))

    assert await ForeignCancellations(store).sweep() == 1_501

    reported = await Cancellations(store).due()
    (found,) = [one for one in reported if one.key == b"r\0t"]
    assert found.deadline == pytest.approx(expires_ms / 1000, abs=60), "by the clock of the sweep"
    assert not {b"s\0new", b"s\0old", b"over\0t"} & {one.key for one in reported}


async def test_a_sweep_reports_each_cancellation_once_and_runs_in_one_poller(store: Redis) -> None:
    await marked(store, "r", "t", "t")
    first, second = ForeignCancellations(store), ForeignCancellations(store)
    await store.set(SWEPT, "another poller")
    assert await first.sweep() == 0
    await store.delete(SWEPT)
    assert await first.sweep() == 1
    assert await store.pttl(SWEPT) != -1, "it expires"
    await store.set(SWEPT, "first", keepttl=True)
    before = await store.zrange(CANCELLATIONS, 0, -1, withscores=True)
    await store.delete(SWEPT)
    assert await second.sweep() == 0
    assert await store.zrange(CANCELLATIONS, 0, -1, withscores=True) == before


@pytest.mark.parametrize(("keys", "commands"), [("*", ["+@all", "-scan"]), ("request-*", ["+@all"])])
async def test_a_poller_without_the_right_to_scan_stops_trying(
    valkey: Valkey, store: Redis, keys: str, commands: list[str]
) -> None:
    await store.acl_setuser("plain", enabled=True, nopass=True, keys=[keys], commands=commands)
    user = Redis.from_url(valkey.url.replace("://", "://plain:x@"), socket_timeout=60, socket_connect_timeout=60)
    foreign = ForeignCancellations(user)
    assert (await foreign.sweep(), foreign.is_allowed) == (0, False)
    await user.aclose()
    await store.acl_deluser("plain")


async def test_a_sweep_that_redis_cuts_off_is_made_again(store: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    await marked(store, "r", "t", "t")
    foreign = ForeignCancellations(store)

    async def cut(*_arguments: object, **_options: object) -> list[object]:
        raise LostConnection

    with monkeypatch.context() as patch:
        patch.setattr("handlers.redis_store.queue.cancellations.executed", cut)
        with pytest.raises(LostConnection):
            await foreign.sweep()
    await store.delete(SWEPT)
    assert await foreign.sweep() == 1


async def test_a_long_sweep_pauses_after_each_page_and_keeps_other_pollers_from_sweeping(
    store: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handlers.redis_store.queue.cancellations.KEYS_AT_ONCE", 10)
    for number in range(200):
        await marked(store, f"r-{number}", "t", "t")
    pauses, others = list[float](), list[int]()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        others.append(await ForeignCancellations(store).sweep())

    assert await ForeignCancellations(store, sleep).sweep() == 200
    assert len(pauses) > 10 and all(pauses[1:])
    assert set(others) == {0}


async def test_old_cancellations_are_removed_a_thousand_at_a_time(store: Redis) -> None:
    """However many expire at once, no call takes long."""
    await store.zadd(CANCELLATIONS, {b"1\0old-%d\0t" % number: 1 + number for number in range(2_500)})
    left = []
    for number in range(3):
        await store.set(active_key(f"r-{number}"), "t", ex=600)
        assert await Submissions(store).cancel([(f"r-{number}", "t")]) == [True]
        left.append(await store.zcount(CANCELLATIONS, 0, 3_000))
    assert left == [1_499, 498, 0]
