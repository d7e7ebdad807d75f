"""Idempotency keys: one request per key and content, on one server and in a real Redis Cluster."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from handlers.client import AsyncClient, Client, ClientOptions, IdempotencyConflict, NewRequest
from handlers.client.new_request import content_digest
from handlers.client.redis_broker import UNREAD_RESULT_SECONDS
from handlers.contract.errors import InvalidRequest, InvalidSetting
from handlers.contract.result import Result, encode_result
from handlers.redis_store.connection import RedisOptions, Store, connect
from handlers.redis_store.idempotency.idempotency import key_record_name
from handlers.redis_store.submit.submissions import RequestState, Submissions
from tests.servers.presence import redis_program
from tests.servers.redis_topologies import Cluster
from tests.servers.valkey import LONG_LIMIT

pytestmark = pytest.mark.xdist_group("redis-idempotency-keys")
HOUR = timedelta(hours=1)
WINDOW = 600


@pytest.fixture(scope="module")
def cluster_url() -> Iterator[str]:
    with Cluster(redis_program()) as running:
        yield running.url


@pytest.fixture(params=["server", "cluster"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("valkey_url" if request.param == "server" else "cluster_url"))


@pytest.fixture
def keyed(options: ClientOptions) -> ClientOptions:
    return msgspec.structs.replace(options, idempotency_window_seconds=WINDOW)


@pytest.fixture
async def client(url: str, keyed: ClientOptions) -> AsyncIterator[AsyncClient]:
    async with AsyncClient.for_redis(url, keyed, access=LONG_LIMIT) as client:
        yield client


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    store = connect(RedisOptions(url, timeout_seconds=60))
    yield store
    await store.aclose()


async def test_the_same_key_and_content_return_the_recorded_submission(
    client: AsyncClient, store: Store, keyed: ClientOptions
) -> None:
    first = await client.submit(b'{"a": 1, "b": 2}', deadline=HOUR, idempotency_key="k")
    again = await client.submit({"b": 2, "a": 1}, deadline=2 * HOUR, idempotency_key="k")
    assert first.is_new
    assert again == msgspec.structs.replace(first, is_new=False)
    assert await store.zcard(keyed.queue) == 1
    assert await client.look_up(again) is RequestState.PENDING


async def test_different_content_under_the_same_key_is_a_conflict_and_queues_nothing(
    client: AsyncClient, store: Store, keyed: ClientOptions
) -> None:
    first = await client.submit({"a": 1}, deadline=HOUR, idempotency_key="k")
    other = NewRequest(payload={"a": 2}, deadline=HOUR, idempotency_key="k")
    with pytest.raises(IdempotencyConflict, match=first.id) as raised:
        await client.submit_many([NewRequest(payload={}, deadline=HOUR), other])
    assert (raised.value.key, raised.value.request_id) == ("k", first.id)
    assert await store.zcard(keyed.queue) == 1


async def test_a_conflict_within_one_call_queues_nothing(
    client: AsyncClient, store: Store, keyed: ClientOptions
) -> None:
    both = [NewRequest(payload={"a": n}, deadline=HOUR, idempotency_key="k") for n in range(2)]
    with pytest.raises(IdempotencyConflict):
        await client.submit_many(both)
    assert await store.zcard(keyed.queue) == 0


async def test_a_conflict_that_arises_after_the_check_is_found_by_the_submission_itself(
    url: str, client: AsyncClient, keyed: ClientOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = Submissions.recorded

    async def then_taken(submissions: Submissions, parts: Any) -> Any:
        found = await recorded(submissions, parts)
        monkeypatch.setattr(Submissions, "recorded", recorded)
        await client.submit({"a": 1}, deadline=HOUR, idempotency_key="k")
        return found

    monkeypatch.setattr(Submissions, "recorded", then_taken)
    async with AsyncClient.for_redis(url, keyed, access=LONG_LIMIT) as other:
        with pytest.raises(IdempotencyConflict):
            await other.submit({"a": 2}, deadline=HOUR, idempotency_key="k")


async def test_a_call_may_mix_repeated_keys_other_keys_and_no_key(
    client: AsyncClient, store: Store, keyed: ClientOptions
) -> None:
    keys = ["k", "", "k", "other", ""]
    found = await client.submit_many([NewRequest(payload={}, deadline=HOUR, idempotency_key=key) for key in keys])
    assert [one.is_new for one in found] == [True, True, False, True, True]
    assert found[2].token == found[0].token
    assert await store.zcard(keyed.queue) == 4


async def test_a_key_belongs_to_its_queue(url: str, client: AsyncClient, keyed: ClientOptions) -> None:
    await client.submit({"a": 1}, deadline=HOUR, idempotency_key="k")
    elsewhere = msgspec.structs.replace(keyed, queue=f"other-{keyed.queue}")
    async with AsyncClient.for_redis(url, elsewhere, access=LONG_LIMIT) as other:
        assert (await other.submit({"a": 2}, deadline=HOUR, idempotency_key="k")).is_new


async def test_one_of_many_producers_with_the_same_key_submits(url: str, store: Store, keyed: ClientOptions) -> None:
    clients = [AsyncClient.for_redis(url, keyed, access=LONG_LIMIT) for _ in range(6)]
    calls = [client.submit({}, deadline=HOUR, idempotency_key=f"k{n}") for n in range(5) for client in clients]
    found = await asyncio.gather(*calls)
    await asyncio.gather(*(client.close() for client in clients))
    assert sum(one.is_new for one in found) == 5
    assert len({(one.id, one.token) for one in found}) == 5
    assert await store.zcard(keyed.queue) == 5


async def test_a_key_is_valid_until_a_window_after_the_ack_of_its_result(
    client: AsyncClient, store: Store, keyed: ClientOptions
) -> None:
    first = await client.submit({"a": 1}, deadline=HOUR, idempotency_key="k")
    record = key_record_name(first.token)
    assert await store.expiretime(record) == first.deadline + UNREAD_RESULT_SECONDS + WINDOW
    await store.delete(keyed.queue, f"request-active:{first.id}")
    await store.lpush(keyed.results, encode_result(Result(first.id, 200, "{}", request_token=first.token)))
    async with client.results(idle=0) as results:
        delivery = await anext(results)
        assert await store.ttl(record) > WINDOW
        await delivery.ack()
    assert 0 < await store.ttl(record) <= WINDOW
    again = await client.submit({"a": 1}, deadline=HOUR, idempotency_key="k")
    assert (again.token, again.is_new) == (first.token, False)
    await store.delete(record)  # as when the window is over
    assert (await client.submit({"a": 2}, deadline=HOUR, idempotency_key="k")).is_new


async def test_the_result_of_another_submission_does_not_change_the_key(
    client: AsyncClient, store: Store, keyed: ClientOptions
) -> None:
    first = await client.submit({"a": 1}, deadline=HOUR, idempotency_key="k")
    forged = f"{first.token.rpartition('-')[0]}-999"
    await store.lpush(keyed.results, encode_result(Result(first.id, 200, "{}", request_token=forged)))
    async with client.results(idle=0) as results:
        await (await anext(results)).ack()
    assert await store.ttl(key_record_name(first.token)) > WINDOW


async def test_a_key_of_a_request_with_its_own_result_list_outlives_that_list(
    client: AsyncClient, store: Store, keyed: ClientOptions
) -> None:
    first = await client.submit({"a": 1}, deadline=HOUR, idempotency_key="k", has_own_results=True)
    again = await client.submit({"a": 1}, deadline=HOUR, idempotency_key="k", has_own_results=True)
    assert (again.results, again.id) == (first.results, first.id)
    expected = first.deadline + keyed.own_result_seconds + WINDOW
    assert await store.expiretime(key_record_name(first.token)) == expected


async def test_no_id_has_the_record_of_a_key(client: AsyncClient) -> None:
    first = await client.submit({"a": 1}, deadline=HOUR, idempotency_key="k")
    stolen = key_record_name(first.token).removeprefix("request-submitted:")
    with pytest.raises(InvalidRequest, match="NUL"):
        await client.submit({}, deadline=HOUR, id=stolen)


def test_the_synchronous_client_takes_a_key(valkey_url: str, keyed: ClientOptions) -> None:
    key = uuid.uuid4().hex
    with Client.for_redis(valkey_url, keyed, access=LONG_LIMIT) as client:
        first, again = (client.submit({}, deadline=HOUR, idempotency_key=key) for _ in range(2))
        with pytest.raises(IdempotencyConflict):
            client.submit({"a": 1}, deadline=HOUR, idempotency_key=key)
    assert (first.token, again.is_new) == (again.token, False)


REQUEST = NewRequest(payload={"a": "é"}, deadline=HOUR)
SAME: dict[str, dict[str, Any]] = {
    "bytes": {"payload": '{"a":"é"}'.encode()},
    "an escape and whitespace": {"payload": '{ "a" : "\\u00e9" }'},
    "another deadline": {"deadline": 2 * HOUR},
    "another key": {"idempotency_key": "other"},
    "a trace context": {"metadata": {"traceparent": "00-1", "tracestate": "a=b", "baggage": "c=d"}},
}
OTHER = {
    "payload": {"a": "e"},
    "id": "chosen",
    "endpoint": "/v1/chat/completions",
    "model": "m",
    "headers": {"x-request-id": "1"},
    "metadata": {"team": "a"},
    "labels": {"tier": "batch"},
    "tier": "batch",
    "tenant": "alice",
    "has_own_results": True,
}


@pytest.mark.parametrize("name", SAME)
def test_fields_that_a_retry_changes_are_not_part_of_the_content(name: str) -> None:
    assert content_digest(msgspec.structs.replace(REQUEST, **SAME[name])) == content_digest(REQUEST)


def test_all_other_fields_are_part_of_the_content() -> None:
    assert set(OTHER) == set(NewRequest.__struct_fields__) - {"deadline", "idempotency_key"}
    digests = [content_digest(msgspec.structs.replace(REQUEST, **{name: value})) for name, value in OTHER.items()]
    assert len({*digests, content_digest(REQUEST)}) == len(OTHER) + 1


@pytest.mark.parametrize("payloads", [(b'{"a":"\\ud800"}', b'{"a":"\\ud801"}')], ids=["lone surrogates"])
def test_unparsable_payloads_are_compared_by_their_bytes(payloads: tuple[bytes, bytes]) -> None:
    first, second = (content_digest(msgspec.structs.replace(REQUEST, payload=each)) for each in payloads)
    assert first != second


async def test_an_overlong_or_unencodable_key_is_refused(client: AsyncClient) -> None:
    for key in ("k" * 1_025, "\ud800"):
        with pytest.raises(InvalidRequest, match="idempotency_key"):
            await client.submit({}, deadline=HOUR, idempotency_key=key)


def test_a_window_of_zero_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="idempotency_window_seconds"):
        ClientOptions(idempotency_window_seconds=0)
