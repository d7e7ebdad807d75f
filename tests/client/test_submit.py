"""The client queues the same members as the reference's producer, and nothing twice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import cast

import msgspec
import pytest
from opentelemetry.sdk.trace import TracerProvider
from redis import Redis

from handlers.client import (
    AsyncClient,
    ClientOptions,
    InvalidRequest,
    InvalidSetting,
    NewRequest,
    RequestState,
)
from handlers.client.new_request import RequestFields
from handlers.client.redis_broker import RedisBroker, batches
from handlers.clock import FollowedClock
from handlers.contract.request import decode_member
from handlers.redis_store.keys import sent_key
from handlers.redis_store.submit.submissions import MemberParts, Submissions, open_redis
from tests.servers.valkey import LONG_LIMIT
from tests.waiting import CLOCK_SET_SECONDS, wait_until_async

HOUR = timedelta(hours=1)
PAYLOAD = b'{ "model": "m",  "prompt": "Gr\xc3\xbc\xc3\x9fe", "temperature": 0.10 }'


def members(redis: Redis, options: ClientOptions) -> list[tuple[bytes, float]]:
    return cast("list[tuple[bytes, float]]", redis.zrange(options.queue, 0, -1, withscores=True))


async def test_a_member_is_what_the_reference_writes(client: AsyncClient, redis: Redis, options: ClientOptions) -> None:
    started = int(time.time())
    deadline = started + 3600
    submission = await client.submit(
        PAYLOAD,
        deadline=deadline,
        id="r1",
        endpoint="/v1/completions",
        tier="batch",
        tenant="alice",
        headers={"x-a": "b"},
    )
    [(member, score)] = members(redis, options)
    wire = json.loads(member)
    assert list(wire) == ["internal", "request_kind", "data"]
    assert wire["request_kind"] == "redis"
    assert wire["internal"] == {
        "request_queue_name": options.queue,
        "result_queue_name": options.results,
        "labels": {"tier": "batch"},
        "request_token": submission.token,
        "enqueue_seq": 1,
    }
    created = wire["data"].pop("created")
    assert started - CLOCK_SET_SECONDS <= created <= time.time() + CLOCK_SET_SECONDS
    assert wire["data"] == {
        "id": "r1",
        "deadline": deadline,
        "payload": json.loads(PAYLOAD),
        "metadata": {"userid": "alice"},
        "headers": {"x-a": "b"},
        "endpoint": "/v1/completions",
    }
    assert PAYLOAD in member, "byte for byte"
    assert score == deadline + 1 / 2**21


async def test_the_markers_expire_with_the_request(client: AsyncClient, redis: Redis, options: ClientOptions) -> None:
    submission = await client.submit({"a": 1}, deadline=HOUR)
    assert redis.get(f"request-active:{submission.id}") == submission.token.encode()
    assert redis.expiretime(f"request-active:{submission.id}") == submission.deadline
    counter = f"request-seq:{options.queue}:{submission.deadline}"
    assert redis.get(counter) == b"1"
    assert redis.expiretime(counter) == submission.deadline + 3_600


async def test_equal_deadlines_keep_the_order_of_submission(
    client: AsyncClient, redis: Redis, options: ClientOptions
) -> None:
    deadline = int(time.time()) + 3600
    requests = [NewRequest(id=f"r{n}", payload={"n": n}, deadline=deadline) for n in range(1_200)]
    submissions = await client.submit_many(requests)
    queued = [decode_member(member, "").request.id for member, _ in members(redis, options)]
    assert queued == [request.id for request in requests] == [submission.id for submission in submissions]
    assert len({submission.token for submission in submissions}) == len(requests)


@pytest.mark.parametrize(
    "deadline",
    [
        lambda: HOUR,
        lambda: datetime.now(UTC) + HOUR,
        lambda: datetime.now() + HOUR,
        lambda: time.time() + 3600,
    ],
    ids=["timedelta", "aware", "naive", "unix"],
)
async def test_a_deadline_is_a_whole_second_in_the_future(
    client: AsyncClient, deadline: Callable[[], timedelta | datetime | float]
) -> None:
    submission = await client.submit({"a": 1}, deadline=deadline())
    assert isinstance(submission.deadline, int)
    assert submission.deadline == pytest.approx(time.time() + 3600, abs=120)


@pytest.mark.parametrize("ahead_seconds", [-7_200, 7_200])
async def test_a_duration_begins_at_the_time_of_redis_and_not_of_the_local_clock(
    valkey_url: str, options: ClientOptions, ahead_seconds: float
) -> None:
    clock = FollowedClock(local=lambda: time.time() + ahead_seconds)
    async with AsyncClient(RedisBroker(valkey_url, options, LONG_LIMIT, clock=clock)) as client:

        async def follows_redis() -> bool:
            """Once Redis has reported its time soon enough."""
            submission = await client.submit({"a": 1}, deadline=timedelta(minutes=10))
            return submission.deadline == pytest.approx(time.time() + 600, abs=120)

        await wait_until_async(follows_redis, "a deadline on the clock of Redis")


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (NewRequest(payload={"a": 1}, deadline=timedelta(seconds=-1)), "deadline"),
        (NewRequest(payload={"a": 1}, deadline=1e13), "deadline"),
        (NewRequest(payload={"a": 1}, deadline=float("inf")), "deadline"),
        (NewRequest(payload={"a": 1}, deadline=float("nan")), "deadline"),
        (NewRequest(payload={"a": 1}, deadline="10m"), "deadline"),  # type: ignore[arg-type]  # as untyped callers do
        (NewRequest(payload={"a": 1}, deadline=None), "deadline"),  # type: ignore[arg-type]  # the same
        (NewRequest(payload={"a": 1}, deadline=datetime.min), "deadline"),
        (NewRequest(payload=b"[1]", deadline=HOUR), "payload"),
        (NewRequest(payload=b"{", deadline=HOUR), "payload"),
        (NewRequest(payload={"a": object()}, deadline=HOUR), "payload"),
        (NewRequest(payload={"a": 1}, deadline=HOUR, id="a\0b"), "id"),
    ],
)
async def test_a_wrong_request_is_refused_before_anything_is_queued(
    client: AsyncClient, redis: Redis, options: ClientOptions, request_: NewRequest, field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await client.submit_many([NewRequest(payload={"a": 1}, deadline=HOUR), request_])
    assert caught.value.field == field
    assert members(redis, options) == []


@pytest.mark.parametrize(
    ("payload", "found"),
    [
        ({"a": object()}, "got a value of type object"),
        ({"a": {(1, 2): 3}}, "got a value of type tuple"),
        ({"a": "\ud800"}, "expected valid Unicode, got text with lone surrogates"),
    ],
)
async def test_a_payload_that_json_cannot_represent_is_refused_with_its_type(
    client: AsyncClient, payload: dict[str, object], found: str
) -> None:
    with pytest.raises(InvalidRequest, match=found):
        await client.submit(payload, deadline=HOUR)


async def test_a_repeated_call_queues_nothing_twice(valkey_url: str, redis: Redis, options: ClientOptions) -> None:
    """Its answer was lost, so the client marks the second call as repeated."""
    store = open_redis(valkey_url)
    submissions = Submissions(store)
    deadline = int(time.time()) + 600
    parts = [
        MemberParts(f"r{n}", deadline, "t", b'{"internal":{"request_token":"t-', b'},"data":{}}') for n in range(3)
    ]
    first = await submissions.submit(options.queue, parts[:2])
    second = await submissions.submit(options.queue, parts, is_repeated=True)
    assert second[:2] == first
    assert redis.zcard(options.queue) == 3
    await store.aclose()


async def test_a_repeated_call_queues_nothing_even_if_its_requests_are_finished(
    valkey_url: str, redis: Redis, options: ClientOptions
) -> None:
    store = open_redis(valkey_url)
    submissions = Submissions(store)
    head, tail = b'{"internal":{"request_token":"t-', b'},"data":{}}'
    parts = [MemberParts(f"done{n}", int(time.time()) + 600, "t", head, tail) for n in range(2)]
    first = await submissions.submit(options.queue, parts)
    redis.delete(options.queue, *(f"request-active:{part.id}" for part in parts))  # as with final results
    assert await submissions.submit(options.queue, parts, is_repeated=True) == first
    assert redis.zcard(options.queue) == 0
    assert 0 < redis.ttl(sent_key([(part.id, part.token) for part in parts])) <= 120
    await store.aclose()


async def test_an_id_that_is_live_or_recently_finished_does_not_run_again(
    valkey_url: str, redis: Redis, options: ClientOptions
) -> None:
    once = msgspec.structs.replace(options, idempotent_window_seconds=600)
    async with AsyncClient.for_redis(valkey_url, once, access=LONG_LIMIT) as client:
        first = await client.submit({"a": 1}, deadline=HOUR)
        second = await client.submit({"a": 2}, deadline=HOUR, id=first.id)
        assert (second.is_new, second.token) == (False, first.token)
        redis.delete(options.queue, f"request-active:{first.id}")  # as with a final result
        third = await client.submit({"a": 3}, deadline=HOUR, id=first.id)
        assert (third.is_new, third.token) == (False, first.token)
        assert await client.look_up(third) is RequestState.FINISHED
        assert redis.zcard(options.queue) == 0
    assert redis.expiretime(f"request-submitted:{first.id}") == first.deadline + 600


async def test_the_live_one_of_two_submissions_of_an_id_is_returned(
    valkey_url: str, redis: Redis, options: ClientOptions, client: AsyncClient
) -> None:
    once = msgspec.structs.replace(options, idempotent_window_seconds=600)
    async with AsyncClient.for_redis(valkey_url, once, access=LONG_LIMIT) as idempotent:
        finished = await idempotent.submit({"a": 1}, deadline=HOUR)
        redis.delete(options.queue, f"request-active:{finished.id}")
        live = await client.submit({"a": 2}, deadline=HOUR, id=finished.id)
        again = await idempotent.submit({"a": 3}, deadline=HOUR, id=finished.id)
        assert (again.is_new, again.token) == (False, live.token)
        assert await idempotent.look_up(again) is RequestState.PENDING


async def test_concurrent_submissions_of_an_id_are_queued_once(
    valkey_url: str, redis: Redis, options: ClientOptions
) -> None:
    """Each on a connection of its own, alone, in one call with others, and twice in one call."""
    once = msgspec.structs.replace(options, idempotent_window_seconds=600)
    ids = [f"id-{number}" for number in range(30)]
    requests = [NewRequest(payload={}, deadline=HOUR, id=one) for one in ids]
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(AsyncClient.for_redis(valkey_url, once, access=LONG_LIMIT))
            for _ in range(6)
        ]
        calls = [client.submit_many([*requests, *requests[::-1]]) for client in clients[:3]]
        calls += [client.submit_many([one]) for client in clients[3:] for one in requests]
        found = [submission for done in await asyncio.gather(*calls) for submission in done]
    assert sorted(one.id for one in found if one.is_new) == sorted(ids)
    assert len({(one.id, one.token) for one in found}) == len(ids)
    assert redis.zcard(options.queue) == len(ids)


async def test_without_a_window_an_id_may_be_submitted_again(client: AsyncClient, redis: Redis) -> None:
    first = await client.submit({"a": 1}, deadline=HOUR)
    await client.cancel(first)
    second = await client.submit({"a": 1}, deadline=HOUR, id=first.id)
    assert second.is_new
    assert second.token != first.token
    assert await client.look_up(second) is RequestState.PENDING
    assert redis.get(f"request-cancel:{first.id}") == first.token.encode(), "the first one may still wait"
    assert await client.look_up(first) is RequestState.FINISHED


async def test_a_large_payload_is_offloaded(valkey_url: str, redis: Redis, options: ClientOptions) -> None:
    offloaded = msgspec.structs.replace(options, payload_apart_bytes=len(PAYLOAD))
    async with AsyncClient.for_redis(valkey_url, offloaded, access=LONG_LIMIT) as client:
        await client.submit(b"{}", deadline=timedelta(minutes=1))
        submission = await client.submit(PAYLOAD, deadline=HOUR)
    small, large = (decode_member(member, "") for member, _ in members(redis, options))
    assert small.request.payload == b"{}"
    assert small.internal.payload_ref == ""
    assert (large.request.id, large.request.payload) == (submission.id, b"")
    reference = large.internal.payload_ref
    assert reference.startswith(f"request-payload:{submission.id}:")
    assert redis.get(reference) == PAYLOAD
    assert redis.expiretime(reference) == submission.deadline + 600


async def test_the_current_trace_is_sent_with_the_request(
    client: AsyncClient, redis: Redis, options: ClientOptions
) -> None:
    with TracerProvider().get_tracer("test").start_as_current_span("submit") as span:
        await client.submit({"a": 1}, deadline=timedelta(minutes=1))
        await client.submit({"a": 1}, deadline=HOUR, metadata={"traceparent": "00-own"})
    traced, own = (decode_member(member, "").request.metadata for member, _ in members(redis, options))
    assert f"{span.get_span_context().trace_id:032x}" in traced["traceparent"]
    assert own["traceparent"] == "00-own"


def test_the_keyword_arguments_of_submit_are_the_fields_of_a_request() -> None:
    fields = {field.name for field in msgspec.structs.fields(NewRequest)} - {"payload", "deadline"}
    assert set(RequestFields.__annotations__) == fields


def test_calls_are_bounded_in_number_and_size() -> None:
    part = MemberParts("r", 1, "t", b"h" * 1_000_000, b"t")
    assert [len(batch) for batch in batches([part] * 7)] == [3, 3, 1]
    small = MemberParts("r", 1, "t", b"h", b"t")
    assert [len(batch) for batch in batches([small] * 1_001)] == [500, 500, 1]
    assert list(batches([])) == []


@pytest.mark.parametrize(("field", "value"), [("queue", ""), ("lease_seconds", 0), ("idempotent_window_seconds", -1)])
def test_an_invalid_option_is_named(field: str, value: object) -> None:
    with pytest.raises(InvalidSetting, match=field):
        msgspec.structs.replace(ClientOptions(), **{field: value})


@dataclass
class Live:
    """A submission, and how to move it as a poller does."""

    redis: Redis
    queue: str
    id: str
    token: str

    def claim(self) -> bytes:
        [(member, _)] = cast("list[tuple[bytes, float]]", self.redis.zpopmin(self.queue))
        self.redis.hset(f"{self.queue}:claimed", f"{self.id}\0{self.token}", member)
        return member

    def release(self) -> None:
        self.redis.delete(f"{self.queue}:claimed")


async def test_look_up_returns_the_state_of_a_request(
    client: AsyncClient, redis: Redis, options: ClientOptions
) -> None:
    deadline = int(time.time()) + 3600  # one instant: the sequence in a score counts equal deadlines
    await client.submit_many([NewRequest(payload={"n": n}, deadline=deadline) for n in range(50)])
    redis.delete(options.queue)
    submission = await client.submit({"a": 1}, deadline=deadline)
    live = Live(redis, options.queue, submission.id, submission.token)
    assert await client.look_up(submission) is RequestState.PENDING
    member = live.claim()
    assert await client.look_up(submission) is RequestState.CLAIMED
    live.release()
    assert await client.look_up(submission.id) is RequestState.RETRYING
    retried = member.replace(b'{"internal":{', b'{"internal":{"retry_count":1,')
    redis.zadd(options.queue, {retried: submission.deadline + 51 / 2**21})
    assert await client.look_up(submission) is RequestState.PENDING, "back with its original score"
    assert await client.cancel(submission)
    assert await client.look_up(submission) is RequestState.CANCELLING
    assert redis.get(f"request-cancel:{submission.id}") == submission.token.encode()
    redis.delete(f"request-active:{submission.id}", f"request-cancel:{submission.id}")
    assert await client.look_up(submission) is RequestState.FINISHED
    assert await client.look_up(submission.id) is RequestState.UNKNOWN
    assert not await client.cancel(submission)
    assert redis.exists(f"request-cancel:{submission.id}") == 0


async def test_look_up_of_another_producers_request_returns_its_state_as_far_as_known(
    client: AsyncClient, redis: Redis, options: ClientOptions
) -> None:
    redis.set(f"request-active:{options.queue}-go", "0123456789abcdef", ex=60)
    assert await client.look_up(f"{options.queue}-go") is RequestState.QUEUED


async def test_a_small_number_as_deadline_is_refused_with_the_timedelta_to_write(client: AsyncClient) -> None:
    with pytest.raises(InvalidRequest, match=r"1970-01-01 00:01:00Z.*give timedelta\(seconds=60\)"):
        await client.submit({}, deadline=60)
