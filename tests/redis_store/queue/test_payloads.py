"""A `payload_ref` reaches the payload of its own request and no other key."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from handlers.redis_store.queue.payloads import is_own_payload, read_payload
from handlers.redis_store.submit.submission_keys import payload_key

OWN = [
    ("request-payload:a:t", "a", "t"),
    ("request-payload:a:t", "a", "t-7"),
    ("request-payload:a:anything", "a", ""),
    ("request-payload:a:b:t", "a:b", "t"),
]
NOT_OWN = [
    ("", "a", "t"),
    ("request-payload:b:t", "a", "t"),
    ("request-payload:b:t", "a", ""),
    ("request-payload:a:u", "a", "t"),
    ("request-payload:a:t-7", "a", "t"),
    ("request-payload:a:t", "a", "t-x"),
    ("request-payload:a:", "a", ""),
    ("request-payload:a", "a", ""),
    ("request-payload:a:b:t", "a", "b:t"),
    ("request-payload:a:b:t", "a", ""),
    ("request-payload::t", "", "t"),
    ("request-active:a", "a", "t"),
    ("quota:userid:a", "a", ""),
]


@pytest.mark.parametrize(("reference", "request_id", "token"), OWN)
async def test_a_request_reads_its_own_payload(
    store: Redis, reference: str, request_id: str, token: str
) -> None:
    await store.set(reference, b"{}")
    assert is_own_payload(reference, request_id, token)
    assert await read_payload(store, reference, request_id, token) == b"{}"


@pytest.mark.parametrize(("reference", "request_id", "token"), NOT_OWN)
async def test_a_request_reads_no_other_key(
    store: Redis, reference: str, request_id: str, token: str
) -> None:
    if reference:
        await store.set(reference, b"secret")
    assert await read_payload(store, reference, request_id, token) is None


@pytest.mark.parametrize("request_id", ["a", "a:b", "é", "a-1"])
def test_what_our_client_stores_apart_is_its_own(request_id: str) -> None:
    assert is_own_payload(payload_key(request_id, "5f2c"), request_id, "5f2c-12")
