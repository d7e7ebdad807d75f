"""Requests and results over the Pub/Sub emulator."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import NamedTuple, cast

import pytest
from redis import Redis

from handlers.client import AsyncClient, BrokerUnreachable, InvalidSetting, NotOffered, Result
from handlers.contract.request import decode_body
from handlers.contract.result import encode_result
from handlers.demo.pubsub_emulator import PubSubEmulator
from handlers.pubsub.channel import PubSubChannel, PubSubOptions
from handlers.pubsub.publisher import Publisher
from handlers.pubsub.puller import Puller
from tests.pubsub.resources import Resources
from tests.servers.pubsub_broker import running_broker
from tests.servers.pubsub_emulator import pubsub_emulator

__all__ = ["pubsub_emulator"]

MINUTE = timedelta(minutes=1)
NOBODY = "127.0.0.1:9"
"""The discard port, on which nothing listens here."""


class Project(NamedTuple):
    channel: PubSubChannel
    client: AsyncClient
    results: Publisher


@pytest.fixture
async def project(pubsub_emulator: PubSubEmulator) -> AsyncIterator[Project]:
    name = f"p-{uuid.uuid4().hex[:8]}"
    options = PubSubOptions(project_id=name, emulator_host=pubsub_emulator.host)
    channel, resources = PubSubChannel(options), Resources(options)
    for topic in ("requests", "results"):
        await resources.topic(topic)
        await resources.subscription(f"{topic}-sub", topic, ackDeadlineSeconds=10)
    client = AsyncClient.for_pubsub(
        name, topic="requests", subscription="results-sub", emulator_host=pubsub_emulator.host
    )
    async with channel, client, Publisher(channel) as publisher:
        yield Project(channel, client, publisher)


async def test_a_request_is_published_as_the_bare_body(project: Project) -> None:
    submission = await project.client.submit({"n": 1}, deadline=MINUTE, tier="batch", tenant="alice")
    [pulled] = await Puller(project.channel, "requests-sub").receive(10, wait_seconds=60)
    request = decode_body(pulled.data)
    assert (request.id, request.payload, request.deadline) == (submission.id, b'{"n":1}', submission.deadline)
    assert request.metadata == {"tier": "batch", "userid": "alice"}


async def test_results_are_read_under_a_lease(project: Project) -> None:
    for name in ("a", "b"):
        await project.results.publish("results", encode_result(Result(name, 200, "x")))
    seen = set()
    async with project.client.results() as stream:
        seen.add((await anext(stream)).result.id)  # not acknowledged, so it is delivered again
    async with asyncio.timeout(60), project.client.results() as stream:
        async for delivery in stream:
            seen.add(delivery.result.id)
            await delivery.ack()
            if seen == {"a", "b"}:
                break
    assert seen == {"a", "b"}


async def test_a_wait_returns_its_own_result_and_releases_the_others(project: Project) -> None:
    submission = await project.client.submit({"n": 1}, deadline=MINUTE)
    for name in ("other", submission.id):
        await project.results.publish("results", encode_result(Result(name, 200, f"of {name}")))
    assert (await project.client.wait(submission, within=60)).payload == f"of {submission.id}"
    assert (await project.client.wait("other", within=60)).payload == "of other"


async def test_unsupported_operations_on_pubsub_are_reported() -> None:
    async with AsyncClient.for_pubsub("p-none", emulator_host=NOBODY) as client:
        with pytest.raises(NotOffered, match="Redis"):
            await client.cancel("a")
        with pytest.raises(NotOffered, match="Redis"):
            await client.look_up("a")


async def test_with_the_push_doors_redis_a_request_can_be_cancelled(valkey_url: str, redis: Redis) -> None:
    async with AsyncClient.for_pubsub("p-none", emulator_host=NOBODY, cancel_redis_url=valkey_url) as client:
        assert await client.cancel_many(["a", "b"]) == [True, True]
    for name in ("a", "b"):
        assert float(cast("bytes", redis.get(f"delivery-cancel:{name}"))) == pytest.approx(time.time(), abs=60)


async def test_cancel_reports_an_unavailable_redis() -> None:
    async with AsyncClient.for_pubsub("p-none", emulator_host=NOBODY, cancel_redis_url="redis://127.0.0.1:1") as client:
        with pytest.raises(BrokerUnreachable):
            await client.cancel("a")


async def test_a_missing_name_is_reported() -> None:
    async with AsyncClient.for_pubsub("p-none", emulator_host=NOBODY) as client:
        with pytest.raises(InvalidSetting, match="REQUEST_TOPIC_ID"):
            await client.submit({"n": 1}, deadline=MINUTE)
        with pytest.raises(InvalidSetting, match="RESULT_SUBSCRIPTION_ID"):
            client.results()


async def test_a_missing_topic_is_reported(pubsub_emulator: PubSubEmulator) -> None:
    async with AsyncClient.for_pubsub("p-none", topic="nowhere", emulator_host=pubsub_emulator.host) as client:
        with pytest.raises(BrokerUnreachable, match="nowhere"):
            await client.submit({"n": 1}, deadline=MINUTE)


async def test_an_idempotency_key_is_refused_before_anything_is_published() -> None:
    async with (
        running_broker() as broker,
        AsyncClient.for_pubsub("p-none", topic="requests", emulator_host=broker.host) as client,
    ):
        with pytest.raises(NotOffered, match="idempotency_key is not supported on Pub/Sub; queue on Redis"):
            await client.submit({}, deadline=MINUTE, idempotency_key="k")
        assert broker.calls == 0
