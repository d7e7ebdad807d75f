"""Results under a lease: a reader's crash loses none, no two readers get the same, others continue."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import cast

import msgspec
import pytest
from redis import Redis

from handlers.client import (
    AsyncClient,
    BrokerUnreachable,
    ClientOptions,
    LeaseLost,
    NoOwnResults,
    NoResultYet,
    Result,
    UnknownRequest,
)
from handlers.contract.result import encode_result
from handlers.redis_store.admin.status_board import FINISHED, FinishedRecord
from handlers.redis_store.keys import active_key, result_of_key
from tests.servers.valkey import LONG_LIMIT
from tests.waiting import wait_until, wait_until_async

ROOT = Path(__file__).parents[2]


def push(redis: Redis, options: ClientOptions, *ids: str, token: str = "") -> None:
    for id_ in ids:
        redis.lpush(options.results, encode_result(Result(id_, 200, f"of {id_}", request_token=token)))


async def read(client: AsyncClient, name: str = "", *, idle: float = 0.0) -> list[str]:
    ids = []
    async with client.results(name, idle=idle) as stream:
        async for delivery in stream:
            ids.append(delivery.result.id)
            await delivery.ack()
    return ids


async def test_results_are_read_oldest_first_and_removed_by_the_ack(
    client: AsyncClient, redis: Redis, options: ClientOptions
) -> None:
    push(redis, options, "a", "b", "c")
    assert await read(client) == ["a", "b", "c"]
    left = redis.keys(f"{options.results}*")
    assert left == [f"{options.results}:result-ack-tombstones".encode()]
    assert 0 < redis.ttl(left[0]) <= options.tombstone_seconds


async def test_unacknowledged_results_return_when_the_reader_leaves(
    client: AsyncClient, redis: Redis, options: ClientOptions
) -> None:
    push(redis, options, "a", "b", "c")
    async with client.results() as stream:
        assert (await anext(stream)).result.id == "a"
    assert await read(client) == ["a", "b", "c"]


async def test_readers_that_pop_get_unleased_results(client: AsyncClient, redis: Redis, options: ClientOptions) -> None:
    push(redis, options, "a", "b")
    async with client.results(limit=1) as stream:
        delivery = await anext(stream)
        popped = redis.rpop(options.results)
        assert isinstance(popped, bytes)
        assert b'"b"' in popped
        await delivery.ack()
    assert redis.llen(options.results) == 0


async def test_a_killed_reader_loses_nothing(valkey_url: str, redis: Redis, options: ClientOptions) -> None:
    push(redis, options, *(f"r{n}" for n in range(20)))
    program = (
        "import asyncio\n"
        "from handlers.client import AsyncClient, ClientOptions, RedisAccess, results\n"
        "results.RENEWALS_PER_LEASE = 600  # each second\n"
        "async def main():\n"
        f"    options = ClientOptions(results={options.results!r}, lease_seconds=600)\n"
        f"    access = RedisAccess(timeout_seconds=60)\n"
        f"    async with AsyncClient.for_redis({valkey_url!r}, options, access) as client:\n"
        "        async with client.results() as stream:\n"
        "            await (await anext(stream)).ack()\n"
        "            print('held', flush=True)\n"
        "            await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen(  # noqa: ASYNC220  # a real process, to be killed
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "held\n"
        try:
            async with AsyncClient.for_redis(valkey_url, options, access=LONG_LIMIT) as client:
                assert await read(client) == [], "it holds them"
                index = f"{options.results}:result-claims-idx"
                held = cast("list[tuple[bytes, float]]", redis.zrange(index, 0, -1, withscores=True))

                def is_renewed() -> bool:
                    return bool(redis.zcount(index, f"({held[-1][1]}", "+inf") == len(held))

                await wait_until_async(is_renewed, "the heartbeat to renew every lease")
                assert await read(client) == []
                reader.send_signal(signal.SIGKILL)
                reader.wait(60)
                redis.zadd(index, {claim_key: 1 for claim_key, _ in held})
                left: list[str] = []

                async def are_read() -> bool:
                    left.extend(await read(client))
                    return len(left) >= 19

                await wait_until_async(are_read, "the results of the killed reader")
                assert sorted(left) == sorted(f"r{n}" for n in range(1, 20))
        finally:
            reader.kill()


async def test_two_readers_share_results_without_duplicates(
    client: AsyncClient, redis: Redis, options: ClientOptions
) -> None:
    ids = [f"r{n}" for n in range(500)]
    push(redis, options, *ids)
    parts = await asyncio.gather(*(read(client, idle=0.1) for _ in range(2)))
    assert sorted(parts[0] + parts[1]) == sorted(ids)


async def test_a_duplicate_of_an_acknowledged_result_is_dropped(
    client: AsyncClient, redis: Redis, options: ClientOptions
) -> None:
    push(redis, options, "a", token="t1")
    assert await read(client) == ["a"]
    push(redis, options, "a", token="t1")
    push(redis, options, "a", token="t2")
    assert await read(client) == ["a"], "a later submission of the id is another one"


async def test_a_late_ack_raises_lease_lost(valkey_url: str, redis: Redis, options: ClientOptions) -> None:
    push(redis, options, "a")
    async with AsyncClient.for_redis(valkey_url, options, access=LONG_LIMIT) as client:
        async with client.results() as stream:
            delivery = await anext(stream)
            redis.zadd(f"{options.results}:result-claims-idx", {delivery.claim_key: 1})  # ended long ago
            with pytest.raises(LeaseLost, match="a"):
                await delivery.ack()
        assert await read(client) == ["a"]


async def test_a_buffered_result_whose_lease_was_lost_is_not_returned(
    client: AsyncClient, redis: Redis, options: ClientOptions
) -> None:
    push(redis, options, "a", "b")
    async with client.results(idle=0) as stream:
        first = await anext(stream)
        index = f"{options.results}:result-claims-idx"
        redis.zadd(index, dict.fromkeys("ab", 1))
        await stream.renew()
        assert await read(client) == ["a", "b"]
        assert [delivery async for delivery in stream] == []
        await first.ack()  # acknowledged by the other reader, so it is not delivered again


async def test_an_ack_may_be_sent_twice(client: AsyncClient, redis: Redis, options: ClientOptions) -> None:
    push(redis, options, "a")
    async with client.results(limit=1) as stream:
        delivery = await anext(stream)
        await delivery.ack()
        await delivery.ack()


async def test_an_undecodable_result_stays_and_blocks_no_reader(
    client: AsyncClient, redis: Redis, options: ClientOptions, caplog: pytest.LogCaptureFixture
) -> None:
    for text in ("garbage", '{"id":""}', "[1]", '{"id":"x","request_token":7}'):
        redis.lpush(options.results, text)
    push(redis, options, "a")
    redis.lpush(options.results, '{"id":"b","status_code":200,"payload":"","request_token":null,"new":1}')
    assert await read(client) == ["a"]
    assert redis.hlen(f"{options.results}:result-claimed") == 5
    assert "garbage" not in caplog.text


async def test_many_callers_can_wait_for_a_result_in_its_own_list(client: AsyncClient, redis: Redis) -> None:
    submission = await client.submit({"a": 1}, deadline=timedelta(hours=1), has_own_results=True)
    waits = [asyncio.create_task(client.wait(name, within=60)) for name in (submission, submission.id, submission)]
    await asyncio.sleep(0)
    redis.lpush(submission.results, encode_result(Result(submission.id, 500, "old", request_token="older")))
    redis.lpush(submission.results, encode_result(Result(submission.id, 200, "new", request_token=submission.token)))
    by_token, by_id, again = await asyncio.gather(*waits)
    assert by_token.payload == again.payload == "new"
    assert by_id.payload in ("old", "new")
    assert (await client.wait(submission, within=60)).payload == "new", "it is not consumed"


async def test_a_result_list_of_another_type_fails_only_its_own_wait(client: AsyncClient, redis: Redis) -> None:
    """One loop waits for all callers of a client."""
    broken, sound = [await client.submit({"a": n}, deadline=timedelta(hours=1), has_own_results=True) for n in range(2)]
    redis.set(broken.results, "not a list")
    waits = [asyncio.create_task(client.wait(submission, within=60)) for submission in (broken, sound)]
    with pytest.raises(BrokerUnreachable, match=f"{broken.id}: a key's type differs"):
        await waits[0]
    redis.lpush(sound.results, encode_result(Result(sound.id, 200, "new", request_token=sound.token)))
    assert (await waits[1]).payload == "new"


async def test_a_wait_ends_in_time(client: AsyncClient) -> None:
    submission = await client.submit({}, deadline=timedelta(hours=1), id="unanswered", has_own_results=True)
    for waited_for in (submission, submission.id):
        with pytest.raises(NoResultYet, match="unanswered"):
            await client.wait(waited_for, within=timedelta(milliseconds=50))


async def test_waiting_for_a_result_in_a_shared_list_fails_once_it_has_arrived(
    client: AsyncClient, redis: Redis, options: ClientOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handlers.client.redis_broker.CHECK_SECONDS", 3_600)  # reached after hours: the first are short
    submission = await client.submit({"a": 1}, deadline=timedelta(hours=1))
    advice = rf"has_own_results=True.*client\.results\('{options.results}'\)"
    waits = [asyncio.create_task(client.wait(waited_for)) for waited_for in (submission, submission.id)]
    record = FinishedRecord(submission.token, "HTTP 200", 1.0, options.queue, results=options.results)
    redis.hset(FINISHED, submission.id, msgspec.json.encode(record))
    redis.delete(options.queue, active_key(submission.id))
    for wait in waits:
        with pytest.raises(NoOwnResults, match=advice):
            await wait


async def test_a_result_is_found_in_a_list_per_request_that_only_the_operator_enabled(
    client: AsyncClient, redis: Redis, options: ClientOptions
) -> None:
    submission = await client.submit({"a": 1}, deadline=timedelta(hours=1))
    wait = asyncio.create_task(client.wait(submission))
    result = Result(submission.id, 200, "{}", request_token=submission.token)
    redis.lpush(result_of_key(options.results, submission.id), encode_result(result))
    assert (await wait).status_code == 200


async def test_waiting_for_an_unknown_id_fails_at_once(client: AsyncClient) -> None:
    with pytest.raises(UnknownRequest, match="nobody"):
        await client.wait("nobody")


async def test_a_wait_for_a_request_that_another_producer_queued_waits(
    client: AsyncClient, redis: Redis, options: ClientOptions
) -> None:
    """Such a request has none of the client's own keys; it is found in the queue or the retry set."""
    for name in (options.queue, options.retry_queue):
        redis.zadd(name, {b'{"id":"plain","deadline":9999999999,"payload":{}}': 9_999_999_999})
        with pytest.raises(NoResultYet, match="plain"):
            await client.wait("plain", within=timedelta(milliseconds=50))
        redis.zrem(name, b'{"id":"plain","deadline":9999999999,"payload":{}}')
    with pytest.raises(UnknownRequest, match="plain"):
        await client.wait("plain")


async def test_a_wait_that_is_cancelled_at_any_step_ends(
    client: AsyncClient, redis: Redis, options: ClientOptions
) -> None:
    """As by its own limit, `within`."""
    redis.zadd(options.queue, {b'{"id":"queued","deadline":9999999999,"payload":{}}': 9_999_999_999})
    for steps in range(300):
        wait = asyncio.create_task(client.wait("queued"))
        for _ in range(steps):
            await asyncio.sleep(0)
        wait.cancel()
        assert await asyncio.wait([wait], timeout=60) == ({wait}, set()), f"after {steps} steps"
        assert wait.cancelled()


async def test_an_id_is_not_reported_as_unknown_if_the_queue_is_too_long_to_search(
    client: AsyncClient, redis: Redis, options: ClientOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handlers.client.redis_broker.CHECKED_STEPS", 1)
    redis.zadd(options.queue, {b'{"id":"r-%d"}' % number: number for number in range(2_000)})
    with pytest.raises(NoResultYet, match="nobody"):
        await client.wait("nobody", within=timedelta(milliseconds=50))


async def test_a_reader_follows_and_can_be_cancelled(client: AsyncClient, redis: Redis, options: ClientOptions) -> None:
    seen: list[str] = []

    async def follow() -> None:
        async with client.results() as stream:
            async for delivery in stream:
                seen.append(delivery.result.id)
                await delivery.ack()

    task = asyncio.create_task(follow())
    push(redis, options, "a")
    await wait_until_async(lambda: seen == ["a"], "the first result")
    push(redis, options, "b")
    await wait_until_async(lambda: seen == ["a", "b"], "the second result")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    wait_until(lambda: redis.zcard(f"{options.results}:result-claims-idx") == 0, "no lease to be left")
