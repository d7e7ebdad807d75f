"""Results with details reach their owners: the settings, through poller and handler, to the client."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator

import httpx
import pytest
import redis

from handlers.client import Client
from handlers.contract.events import REQUEST_TYPE
from handlers.contract.result import decode_result
from handlers.demo.stack import Stack, StackOptions
from handlers.redis_store.submit.submissions import RequestState
from tests.servers.forked import ForkedChild
from tests.servers.valkey import LONG_LIMIT
from tests.waiting import wait_until

IN_TIME = 60.0
VARIABLES = {"RESULT_DETAILS": "true", "RESULT_PER_REQUEST": "true", "RESULT_APART_BYTES": "10"}


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with Stack(StackOptions(child=ForkedChild, has_pubsub=False, variables=VARIABLES)) as running:
        yield running


@pytest.fixture
def client(stack: Stack) -> Iterator[Client]:
    with Client.for_redis(stack.redis_url, access=LONG_LIMIT) as opened:
        yield opened


def test_a_plain_producers_request_gets_its_own_list_and_details(stack: Stack, client: Client) -> None:
    now = time.time()
    body = {
        "id": "plain",
        "created": int(now) - 1,
        "deadline": now + 600,
        "payload": {"model": "m", "prompt": "Hi"},
        "metadata": {"userid": "me"},
    }
    with redis.Redis.from_url(stack.redis_url, socket_timeout=60) as store:
        store.zadd("request-sortedset", {json.dumps(body): now + 600})
        wait_until(lambda: client.look_up("plain") is not RequestState.UNKNOWN, what="the claim of a request")
        result = client.wait("plain", within=IN_TIME)
        assert 0 < int(store.ttl("result-list:result-of:plain")) <= 86_400
        assert not store.llen("result-list")
        (text,) = store.lrange("result-list:result-of:plain", 0, -1)
        written = json.loads(text)
        reference = written["payload_ref"]
        assert reference.startswith("result-payload:plain:")
        payload = result.payload.encode()
        assert store.get(reference) == payload
        described = (written["payload_size"], written["payload_sha256"])
        assert described == (len(payload), hashlib.sha256(payload).hexdigest())
        assert written["content_type"].startswith("application/json")
        assert 0 < int(store.ttl(reference)) <= 86_400
    assert "choices" in json.loads(result.payload)
    assert (result.status_code, result.attempts, result.metadata) == (200, 1, {"userid": "me"})
    assert result.gateway_seconds is not None
    assert result.queue_seconds is not None
    assert result.queue_seconds >= 0.5
    assert result.finished_at == pytest.approx(time.time(), abs=IN_TIME)
    assert result.usage is not None
    assert result.usage.output_tokens > 0


def test_events_of_other_sources_get_all_details_and_those_of_the_poller_only_the_duration(
    stack: Stack,
) -> None:
    now = time.time()
    body = {
        "id": "event",
        "created": int(now) - 1,
        "deadline": now + 600,
        "payload": {"model": "m", "prompt": "Hi"},
        "metadata": {"userid": "me"},
    }
    headers = {
        "ce-id": "1",
        "ce-source": "/broker",
        "ce-type": "record",
        "ce-specversion": "1.0",
        "content-type": "application/json",
    }
    answered = httpx.post(stack.handler_url, json=body, headers=headers, timeout=IN_TIME)
    result = decode_result(answered.content)
    assert (result.status_code, result.attempts, result.metadata) == (200, 1, {"userid": "me"})
    assert None not in (result.gateway_seconds, result.queue_seconds, result.finished_at, result.usage)

    plain = httpx.post(
        stack.handler_url,
        json=body,
        headers={**headers, "ce-queue": "request-sortedset", "ce-type": REQUEST_TYPE},
        timeout=IN_TIME,
    )
    more = {"attempts", "queue_seconds", "finished_at", "usage", "metadata"}
    assert answered.json().keys() - plain.json().keys() == more, "the poller adds these itself"
    assert plain.json()["gateway_seconds"] == pytest.approx(0, abs=60), "milliseconds, rounded"
