"""A cancelled request gets a `CANCELLED` result at once in any state, and its call ends."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator, Mapping
from datetime import timedelta

import msgspec
import pytest
import redis

from handlers.client import Client, NewRequest, Submission
from handlers.contract.result import ErrorCode
from handlers.demo.stack import Stack, StackOptions
from tests.servers.forked import ForkedChild
from tests.servers.valkey import LONG_LIMIT
from tests.waiting import wait_until

HOUR = timedelta(hours=1)
SOON_SECONDS = 60
"""Seconds that a test waits for something that takes a second or two on a quiet machine."""
SLOW = {"prompt": "tell me everything", "max_tokens": 100_000}
REFUSED = {"simulate": {"status": 429, "retry_after": "3000"}}


@pytest.fixture(scope="module")
def busy_stack() -> Iterator[Stack]:
    """A stack with one slot, so that a second request waits for it."""
    variables = {"WORKERS": "1", "SHUTDOWN_GRACE_SECONDS": "1", "REQUEST_TIMEOUT_SECONDS": "3600"}
    with Stack(
        StackOptions(
            child=ForkedChild,
            has_pubsub=False,
            gateway_arguments=("--time-per-token", "0.05"),
            variables=variables,
        )
    ) as running:
        yield running


@pytest.fixture
def client(busy_stack: Stack) -> Iterator[Client]:
    with Client.for_redis(busy_stack.redis_url, access=LONG_LIMIT) as opened:
        yield opened


def gateway_is_busy(stack: Stack) -> bool:
    with urllib.request.urlopen(f"{stack.gateway_url}/simulate/state", timeout=60) as answer:
        state = msgspec.json.decode(answer.read())
    return bool(state["running"] > 0)


def keys_left(stack: Stack) -> set[str]:
    with redis.Redis.from_url(stack.redis_url, socket_timeout=60) as store:
        keys = {key.decode() for key in store.scan_iter()}
    return {
        key
        for key in keys
        if ":settled:" not in key
        and not key.startswith("request-sent:")
        and ":status:" not in key
        and not key.startswith(("request-seq:", "result-list"))
    }


def cancelled(client: Client, submission: Submission) -> float:
    """Cancel, and check the result; returns the seconds it took."""
    began = time.monotonic()
    assert client.cancel(submission)
    result = client.wait(submission, within=SOON_SECONDS)
    assert (result.error_code, result.status_code) == (ErrorCode.CANCELLED, 0)
    return time.monotonic() - began


def test_cancelling_a_request_in_flight_closes_its_gateway_connection(busy_stack: Stack, client: Client) -> None:
    submission = client.submit(SLOW, deadline=HOUR, has_own_results=True)
    wait_until(lambda: gateway_is_busy(busy_stack), "the request at the gateway")

    cancelled(client, submission)

    wait_until(lambda: not gateway_is_busy(busy_stack), "the gateway to be free")
    assert client.ask({"prompt": "next"}, deadline=HOUR, within=SOON_SECONDS).status_code == 200
    assert not client.cancel(submission), "an answered request is no longer live"


def test_a_cancelled_pending_request_is_answered_although_no_slot_is_free(busy_stack: Stack, client: Client) -> None:
    first = client.submit(SLOW, deadline=HOUR, has_own_results=True)
    wait_until(lambda: gateway_is_busy(busy_stack), "the request at the gateway")
    waiting = [client.submit({"prompt": "hi", "max_tokens": 1}, deadline=HOUR, has_own_results=True) for _ in range(9)]

    cancelled(client, waiting[5])
    cancelled(client, first)
    answers = {client.wait(one, within=SOON_SECONDS).status_code for one in waiting if one is not waiting[5]}

    assert answers == {200}
    wait_until(lambda: keys_left(busy_stack) <= {"request-cancellations"}, "no key left")


def test_a_cancelled_retry_is_answered_before_it_is_due(busy_stack: Stack, client: Client) -> None:
    submission = client.submit(REFUSED, deadline=HOUR, has_own_results=True)
    with redis.Redis.from_url(busy_stack.redis_url, socket_timeout=60) as store:
        wait_until(lambda: store.zcard("retry-sortedset"), "the request among the retries")
        cancelled(client, submission)
        assert not store.zcard("retry-sortedset")


def test_a_cancelled_request_stays_cancelled_when_its_id_is_used_again(busy_stack: Stack, client: Client) -> None:
    busy = client.submit(SLOW, deadline=HOUR, has_own_results=True)
    wait_until(lambda: gateway_is_busy(busy_stack), "the request at the gateway")
    old = client.submit({"prompt": "old"}, deadline=HOUR, has_own_results=True, id="replaced")
    assert client.cancel(old)
    new = client.submit({"prompt": "new"}, deadline=HOUR, has_own_results=True, id="replaced")

    assert client.wait(old, within=SOON_SECONDS).error_code == ErrorCode.CANCELLED
    cancelled(client, busy)
    assert client.wait(new, within=SOON_SECONDS).status_code == 200


def test_a_queued_request_is_cancelled_by_another_producers_marker(busy_stack: Stack) -> None:
    deadline = int(time.time()) + 3_600
    body = {"id": "foreign", "deadline": deadline, "payload": {"prompt": "hi"}}
    member = msgspec.json.encode({"internal": {"request_token": "t"}, "request_kind": "redis", "data": body})
    with redis.Redis.from_url(busy_stack.redis_url, socket_timeout=60) as store:
        store.set("request-active:foreign", "t", exat=deadline)
        store.set("request-cancel:foreign", "t", exat=deadline)
        store.zadd("request-sortedset", {member: deadline})
        _, text = store.blpop(["result-list"], timeout=SOON_SECONDS)
        assert msgspec.json.decode(text)["error_code"] == "CANCELLED"
        assert not store.exists("request-cancel:foreign", "request-active:foreign")


def test_the_marker_of_another_submission_cancels_nothing(busy_stack: Stack, client: Client) -> None:
    with redis.Redis.from_url(busy_stack.redis_url, socket_timeout=60) as store:
        submission = client.submit({"prompt": "hi"}, deadline=HOUR, has_own_results=True, id="again")
        store.set("request-cancel:again", "an-older-token", ex=60)
        assert client.wait(submission, within=SOON_SECONDS).status_code == 200
        store.delete("request-cancel:again")


def foreign_request(store: redis.Redis, request_id: str, payload: Mapping[str, object]) -> None:
    """Queue a request as a producer of the reference does."""
    deadline = int(time.time()) + 3_600
    body = {"id": request_id, "deadline": deadline, "payload": payload}
    internal = {"request_token": "5f2c", "enqueue_seq": 7, "result_queue_name": f"results-{request_id}"}
    member = msgspec.json.encode({"internal": internal, "request_kind": "redis", "data": body})
    store.set(f"request-active:{request_id}", "5f2c", px=3_600_000)
    store.zadd("request-sortedset", {member: deadline + 7 / 2**21})


def foreign_result(store: redis.Redis, request_id: str) -> str:
    found = store.blpop([f"results-{request_id}"], timeout=SOON_SECONDS)
    assert found is not None, "no result"
    return str(msgspec.json.decode(found[1]).get("error_code"))


def test_a_marker_of_another_producers_client_is_found_while_the_request_waits_for_its_turn(
    busy_stack: Stack, client: Client
) -> None:
    busy = client.submit(SLOW, deadline=HOUR, has_own_results=True)
    wait_until(lambda: gateway_is_busy(busy_stack), "the request at the gateway")
    with redis.Redis.from_url(busy_stack.redis_url, socket_timeout=60) as store:
        foreign_request(store, "waits", {"prompt": "hi"})
        store.set("request-cancel:waits", "5f2c", ex=604_800)
        assert foreign_result(store, "waits") == "CANCELLED"
        assert not store.exists("request-cancel:waits", "request-active:waits")
    cancelled(client, busy)


def test_a_marker_of_another_producers_client_is_found_while_the_request_waits_for_a_retry(
    busy_stack: Stack,
) -> None:
    with redis.Redis.from_url(busy_stack.redis_url, socket_timeout=60) as store:
        foreign_request(store, "retried", REFUSED)
        wait_until(lambda: store.zcard("retry-sortedset"), "the request among the retries")
        store.set("request-cancel:retried", "5f2c", ex=604_800)
        assert foreign_result(store, "retried") == "CANCELLED"
        assert not store.zcard("retry-sortedset")


def test_our_client_cancels_requests_of_another_producer(busy_stack: Stack, client: Client) -> None:
    busy = client.submit(SLOW, deadline=HOUR, has_own_results=True)
    wait_until(lambda: gateway_is_busy(busy_stack), "the request at the gateway")
    with redis.Redis.from_url(busy_stack.redis_url, socket_timeout=60) as store:
        foreign_request(store, "other", {"prompt": "hi"})
        assert client.cancel("other")
        assert foreign_result(store, "other") == "CANCELLED"
    cancelled(client, busy)


def test_thousands_of_cancelled_requests_are_answered_although_no_slot_is_free(
    busy_stack: Stack, client: Client
) -> None:
    busy = client.submit(SLOW, deadline=HOUR, has_own_results=True)
    wait_until(lambda: gateway_is_busy(busy_stack), "the request at the gateway")
    requests = [NewRequest(payload={"n": n}, deadline=HOUR) for n in range(5_000)]
    with redis.Redis.from_url(busy_stack.redis_url, socket_timeout=60) as store:
        store.delete("result-list")
        assert all(client.cancel_many(client.submit_many(requests)))
        wait_until(lambda: store.llen("result-list") == 5_000, "all answered")
        store.delete("result-list")
    cancelled(client, busy)
