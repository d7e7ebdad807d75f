"""Pulling results on the emulator: leases, acknowledgements, redeliveries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from handlers.contract.errors import InvalidSetting
from handlers.pubsub.channel import PubSubChannel, PubSubOptions
from handlers.pubsub.errors import PubSubFailed
from handlers.pubsub.publisher import Publisher
from handlers.pubsub.puller import Pulled, Puller
from tests.pubsub.resources import Resources
from tests.servers.pubsub_broker import Refusal, refusal, running_broker


@pytest.fixture
async def puller(channel: PubSubChannel, resources: Resources) -> AsyncIterator[Puller]:
    await resources.topic("results")
    await resources.subscription("reader", "results", ackDeadlineSeconds=600)
    yield Puller(channel, "reader")


async def published(channel: PubSubChannel, *data: bytes) -> None:
    async with Publisher(channel) as publisher:
        await asyncio.gather(*(publisher.publish("results", each, {"id": "1"}) for each in data))


async def received(puller: Puller, count: int) -> list[Pulled]:
    got: list[Pulled] = []
    while len(got) < count:
        got += await puller.receive(count - len(got), wait_seconds=60.0)
    return got


async def test_published_messages_are_pulled_with_their_attributes(channel: PubSubChannel, puller: Puller) -> None:
    await published(channel, b"\x00 \xff")
    (pulled,) = await received(puller, 1)
    assert pulled.data == b"\x00 \xff"
    assert pulled.attributes == {"id": "1"}
    assert pulled.message_id


async def test_an_empty_subscription_gives_nothing_in_the_time_given(puller: Puller) -> None:
    assert await puller.receive(10, wait_seconds=0.2) == []


async def test_a_pull_waits_for_new_messages(channel: PubSubChannel, puller: Puller) -> None:
    waiting = asyncio.ensure_future(received(puller, 1))
    await published(channel, b"late")
    assert [pulled.data for pulled in await waiting] == [b"late"]


async def test_returned_results_are_delivered_again_and_acknowledged_ones_are_not(
    channel: PubSubChannel, puller: Puller
) -> None:
    await published(channel, b"1", b"2")
    first, second = await received(puller, 2)
    await puller.ack([first.ack_id])
    await puller.give_back([second.ack_id])
    (again,) = await received(puller, 1)
    assert again.data == second.data
    await puller.ack([again.ack_id])
    await puller.ack([again.ack_id])
    assert await puller.receive(10) == []


async def test_a_lease_is_the_subscriptions_and_is_extended(channel: PubSubChannel, puller: Puller) -> None:
    assert await puller.lease_seconds() == 600.0
    await published(channel, b"1")
    (pulled,) = await received(puller, 1)
    await puller.extend([pulled.ack_id], 600)
    assert await puller.receive(1) == []


async def test_many_acknowledgements_are_sent_in_calls_that_the_service_accepts() -> None:
    async with (
        running_broker() as broker,
        PubSubChannel(PubSubOptions(project_id="proj", emulator_host=broker.host)) as counted,
    ):

        def fault(_method: str, _request: bytes) -> Refusal | None:
            return refusal("UNAVAILABLE") if broker.calls == 1 else None

        broker.fault = fault
        prefix = "projects/proj/subscriptions/reader"
        await Puller(counted, "reader").ack([f"{prefix}:{n}" for n in range(2_500)])
        assert broker.calls == 4, "three calls, the first repeated after a 503"


async def test_a_missing_or_invalid_subscription_is_reported(channel: PubSubChannel) -> None:
    with pytest.raises(PubSubFailed, match="404"):
        await Puller(channel, "missing").receive(1, wait_seconds=60)
    with pytest.raises(PubSubFailed, match="404"):
        await Puller(channel, "missing").lease_seconds()
    with pytest.raises(InvalidSetting, match="subscription"):
        Puller(channel, "a b")


async def test_an_acknowledgement_refused_for_good_is_not_retried() -> None:
    async with (
        running_broker() as broker,
        PubSubChannel(PubSubOptions(project_id="proj", emulator_host=broker.host)) as channel,
    ):
        broker.fault = lambda _method, _request: refusal("PERMISSION_DENIED")
        with pytest.raises(PubSubFailed, match="403"):
            await Puller(channel, "reader").ack(["x"])
        assert broker.calls == 1
