"""Offloaded payloads are fetched for readers and deleted with their results."""

from __future__ import annotations

import pytest
from redis import Redis

from handlers.client import AsyncClient, ClientOptions
from handlers.contract.result import ErrorCode
from handlers.redis_store.keys import result_of_key

KEY = "result-payload:a:1"
REFERENCE = b'{"id":"a","status_code":200,"payload_ref":"result-payload:a:1"}'


@pytest.fixture(autouse=True)
def payload(redis: Redis) -> None:
    redis.set(KEY, b"large", ex=600)


async def test_acknowledging_a_result_deletes_its_offloaded_payload(
    client: AsyncClient, options: ClientOptions, redis: Redis
) -> None:
    redis.lpush(options.results, REFERENCE)
    async with client.results(limit=1) as stream:
        async for delivery in stream:
            assert (delivery.result.payload, delivery.result.payload_ref) == ("large", "")
            assert redis.exists(KEY)
            await delivery.ack()
    assert not redis.exists(KEY)


async def test_a_returned_result_is_unchanged(client: AsyncClient, options: ClientOptions, redis: Redis) -> None:
    redis.lpush(options.results, REFERENCE)
    for _ in range(2):
        async with client.results(limit=1) as stream:
            assert (await anext(stream)).result.payload == "large"
        assert redis.exists(KEY)


@pytest.mark.parametrize("is_of_another_type", [False, True])
async def test_a_missing_offloaded_payload_gives_payload_unavailable(
    client: AsyncClient, options: ClientOptions, redis: Redis, is_of_another_type: bool
) -> None:
    redis.delete(KEY)
    if is_of_another_type:
        redis.rpush(KEY, "not a string")
    redis.lpush(options.results, REFERENCE)
    redis.lpush(options.results, b'{"id":"b","status_code":200,"payload":"small"}')
    async with client.results(limit=2) as stream:
        result = (await anext(stream)).result
        assert (await anext(stream)).result.payload == "small"
    assert (result.id, result.status_code, result.error_code) == ("a", 0, ErrorCode.PAYLOAD_UNAVAILABLE)


async def test_waiting_for_one_result_returns_it_whole(
    client: AsyncClient, options: ClientOptions, redis: Redis
) -> None:
    redis.lpush(result_of_key(options.results, "a"), REFERENCE)
    for _ in range(2):
        assert (await client.wait("a", within=60)).payload == "large"
