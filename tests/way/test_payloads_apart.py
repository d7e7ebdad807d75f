"""Offloaded payloads are read for each attempt and deleted with the final result."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import cast

import pytest
import redis

from handlers.client import Client, ClientOptions
from handlers.contract.result import ErrorCode, Result, decode_result
from handlers.demo.stack import Stack, StackOptions
from tests.servers.forked import ForkedChild
from tests.servers.valkey import LONG_LIMIT
from tests.waiting import wait_until

IN_TIME = 60.0
HOUR = timedelta(hours=1)
REFUSED = {"simulate": {"status": 429, "retry_after": "3000"}}
REFUSED_ONCE = {"simulate": {"key": "once", "status": 503, "times": 1}}


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with Stack(StackOptions(child=ForkedChild, has_pubsub=False, variables={"WORKERS": "4"})) as running:
        yield running


@pytest.fixture
def client(stack: Stack) -> Iterator[Client]:
    with Client.for_redis(stack.redis_url, ClientOptions(payload_apart_bytes=1), access=LONG_LIMIT) as opened:
        yield opened


@pytest.fixture
def store(stack: Stack) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(stack.redis_url, socket_timeout=60) as opened:
        yield opened


def no_payload_is_left(store: redis.Redis) -> bool:
    return not list(store.scan_iter("request-payload:*"))


def offloading_queue(store: redis.Redis, request_id: str, **fields: object) -> str:
    """Queue a request as another producer does; returns its payload's key."""
    key = f"request-payload:{request_id}:t"
    data = {"id": request_id, "deadline": int(time.time()) + 3_600, **fields}
    member = {"internal": {"request_token": "t", "payload_ref": key}, "request_kind": "redis", "data": data}
    store.zadd("request-sortedset", {json.dumps(member): time.time() + 3_600})
    return key


def next_result(store: redis.Redis) -> Result:
    found = store.blpop(["result-list"], timeout=IN_TIME)
    assert found is not None
    return decode_result(cast("bytes", found[1]))


@pytest.mark.parametrize("payload", [{"prompt": "hi", "max_tokens": 1}, REFUSED_ONCE])
def test_an_offloaded_payload_of_our_client_is_deleted_once_answered(
    client: Client, store: redis.Redis, payload: dict[str, object]
) -> None:
    submission = client.submit(payload, deadline=HOUR, has_own_results=True)
    assert client.wait(submission, within=IN_TIME).status_code == 200
    wait_until(lambda: no_payload_is_left(store), "no payload left")


def test_the_payload_exists_while_the_request_waits_for_a_retry_and_is_deleted_when_it_is_cancelled(
    client: Client, store: redis.Redis
) -> None:
    submission = client.submit(REFUSED, deadline=HOUR, has_own_results=True)
    wait_until(lambda: store.zcard("retry-sortedset"), "the request among the retries")
    assert not no_payload_is_left(store)
    client.cancel(submission)
    assert client.wait(submission, within=IN_TIME).error_code == ErrorCode.CANCELLED
    wait_until(lambda: no_payload_is_left(store), "no payload left")


@pytest.mark.parametrize(
    ("fields", "error_code"),
    [
        ({"deadline": 5}, ErrorCode.DEADLINE_EXCEEDED),
        ({"deadline": "soon"}, ErrorCode.INVALID_REQUEST),
        ({"metadata": {"a": 1}}, ErrorCode.INVALID_REQUEST),
        ({"endpoint": "//evil/x"}, ErrorCode.INVALID_REQUEST),
    ],
)
def test_the_payload_is_deleted_with_a_request_that_ends_without_an_answer(
    store: redis.Redis, fields: dict[str, object], error_code: ErrorCode
) -> None:
    store.set("request-payload:r:t", "{}", ex=3_600)
    offloading_queue(store, "r", **fields)
    assert next_result(store).error_code == error_code
    wait_until(lambda: no_payload_is_left(store), "no payload left")


@pytest.mark.parametrize("payload", ["hello", '{"a":1},"id":"b"', "[1]"])
def test_an_invalid_payload_is_answered_at_once(store: redis.Redis, payload: str) -> None:
    store.set("request-payload:r:t", payload, ex=3_600)
    offloading_queue(store, "r")
    result = next_result(store)
    assert (result.error_code, result.request_token) == (ErrorCode.INVALID_REQUEST, "t")
    wait_until(lambda: no_payload_is_left(store), "no payload left")


def test_a_key_of_another_type_holds_no_payload(store: redis.Redis) -> None:
    store.rpush("request-payload:r:t", "{}")
    offloading_queue(store, "r")
    assert next_result(store).error_code == ErrorCode.PAYLOAD_UNAVAILABLE
    wait_until(lambda: no_payload_is_left(store), "no payload left")


def test_a_payload_that_expires_between_two_attempts_is_unavailable(store: redis.Redis) -> None:
    refused = {"simulate": {"status": 429, "retry_after": "3000"}}
    store.set("request-payload:r:t", json.dumps(refused), ex=3_600)
    key = offloading_queue(store, "r")
    wait_until(lambda: store.zcard("retry-sortedset"), "the request among the retries")
    store.delete(key)
    (member,) = cast("list[bytes]", store.zrange("retry-sortedset", 0, -1))
    store.zadd("retry-sortedset", {member: 1})
    assert next_result(store).error_code == ErrorCode.PAYLOAD_UNAVAILABLE
