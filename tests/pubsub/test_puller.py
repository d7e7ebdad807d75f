"""Pulling results on the emulator: leases, acknowledgements, what comes again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from handlers.contract.errors import InvalidSetting
from handlers.pubsub.api import PubSubApi, PubSubOptions
from handlers.pubsub.errors import PubSubFailed
from handlers.pubsub.publisher import Publisher
from handlers.pubsub.puller import Pulled, Puller
from tests.pubsub.broker_proxy import broker_proxy, refusal
from tests.pubsub.resources import Resources


@pytest.fixture
async def puller(api: PubSubApi, resources: Resources) -> AsyncIterator[Puller]:
    await resources.topic("results")
    await resources.subscription("reader", "results", ackDeadlineSeconds=10)
    yield Puller(api, "reader")


async def published(api: PubSubApi, *data: bytes) -> None:
    async with Publisher(api) as publisher:
        await asyncio.gather(*(publisher.publish("results", each, {"id": "1"}) for each in data))


async def received(puller: Puller, count: int) -> list[Pulled]:
    got: list[Pulled] = []
    while len(got) < count:
        got += await puller.receive(count - len(got), wait_seconds=5.0)
    return got


async def test_what_was_published_is_pulled_with_its_attributes(api: PubSubApi, puller: Puller) -> None:
    await published(api, b"\x00 \xff")
    (pulled,) = await received(puller, 1)
    assert pulled.data == b"\x00 \xff"
    assert pulled.attributes == {"id": "1"}
    assert pulled.message_id


async def test_an_empty_subscription_gives_nothing_in_the_time_given(puller: Puller) -> None:
    assert await puller.receive(10) == []
    assert await puller.receive(10, wait_seconds=0.2) == []


async def test_a_pull_waits_for_what_is_published_meanwhile(api: PubSubApi, puller: Puller) -> None:
    waiting = asyncio.ensure_future(received(puller, 1))
    await published(api, b"late")
    assert [pulled.data for pulled in await waiting] == [b"late"]


async def test_what_was_acknowledged_does_not_come_again_what_was_given_back_does(
    api: PubSubApi, puller: Puller
) -> None:
    await published(api, b"1", b"2")
    first, second = await received(puller, 2)
    await puller.ack([first.ack_id])
    await puller.give_back([second.ack_id])
    (again,) = await received(puller, 1)
    assert again.data == second.data
    await puller.ack([again.ack_id])
    await puller.ack([again.ack_id])
    assert await puller.receive(10) == []


async def test_a_lease_is_the_subscriptions_and_is_extended(api: PubSubApi, puller: Puller) -> None:
    assert await puller.lease_seconds() == 10.0
    await published(api, b"1")
    (pulled,) = await received(puller, 1)
    await puller.extend([pulled.ack_id], 600)
    assert await puller.receive(1) == []


async def test_many_acknowledgements_go_in_calls_that_the_service_takes(
    options: PubSubOptions, api: PubSubApi, puller: Puller
) -> None:
    async with (
        broker_proxy(options.emulator_host) as proxy,
        PubSubApi(replace(options, emulator_host=proxy.host)) as counted,
    ):
        proxy.fault = lambda _body: refusal(503) if proxy.calls == 1 else None
        prefix = f"projects/{options.project_id}/subscriptions/reader"
        await Puller(counted, "reader").ack([f"{prefix}:{n}" for n in range(2_500)])
        assert proxy.calls == 4, "three calls, the first repeated after a 503"


async def test_a_subscription_that_is_missing_or_impossible_is_said(api: PubSubApi) -> None:
    with pytest.raises(PubSubFailed, match="404"):
        await Puller(api, "missing").receive(1)
    with pytest.raises(PubSubFailed, match="404"):
        await Puller(api, "missing").lease_seconds()
    with pytest.raises(InvalidSetting, match="subscription"):
        Puller(api, "a b")


async def test_a_hopeless_acknowledgement_is_not_repeated(options: PubSubOptions) -> None:
    async with (
        broker_proxy(options.emulator_host) as proxy,
        PubSubApi(replace(options, emulator_host=proxy.host)) as api,
    ):
        proxy.fault = lambda _body: refusal(403)
        with pytest.raises(PubSubFailed, match="403"):
            await Puller(api, "reader").ack(["x"])
        assert proxy.calls == 1
