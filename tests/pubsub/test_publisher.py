"""Publishing: what arrives on the emulator, and calls and refusals on a broker that answers as the service may."""

from __future__ import annotations

import asyncio
import gc
import re
import signal

import grpc
import pytest
from google.api_core.exceptions import from_grpc_status
from google.pubsub_v1.types import PublishRequest
from msgspec.structs import replace

from handlers.contract.errors import InvalidSetting
from handlers.demo.pubsub_emulator import PubSubEmulator
from handlers.pubsub.channel import PubSubChannel, PubSubOptions, status_of
from handlers.pubsub.errors import PublishFailed, PubSubFailed, ResultTooLarge
from handlers.pubsub.publisher import (
    CERTAIN_BYTES,
    MAX_BYTES,
    Publisher,
    PublisherOptions,
    TopicBatches,
    TopicState,
    check_limits,
)
from tests.pubsub.resources import Resources
from tests.servers.pubsub_broker import Fault, Refusal, confirmed, refusal, running_broker
from tests.waiting import wait_until_async

NOBODY = "127.0.0.1:9"
"""The discard port, on which nothing listens here."""
LONG_LIMITS = PublisherOptions(call_timeout_seconds=60, timeout_seconds=120)
"""On a busy machine no call is repeated because its answer is late."""


def at(host: str) -> PubSubOptions:
    """The options of a channel to `host`."""
    return PubSubOptions(project_id="proj", emulator_host=host)


async def test_a_confirmed_result_is_on_the_topic_byte_for_byte_with_its_trace_and_other_attributes(
    channel: PubSubChannel, resources: Resources
) -> None:
    await resources.topic("results")
    await resources.subscription("reader", "results")
    data = '{"id":"ü","payload":"\\u0000 \U0001f600"}'.encode()
    attributes = {
        "id": "ü",
        "result_route": "a",
        "googclient_traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01",
        "empty": "",
        "ü": "é\n",
    }
    async with Publisher(channel) as publisher:
        assert await publisher.publish("results", data, attributes)
    assert await resources.pulled("reader", 1) == [(data, attributes)]


async def test_a_topic_may_be_named_in_full_and_hold_any_legal_character(
    channel: PubSubChannel, resources: Resources
) -> None:
    name = "a%2Fb+c~d.e_f-g"
    await resources.topic(name)
    await resources.subscription("reader", name)
    async with Publisher(channel) as publisher:
        await publisher.publish(f"{resources.project}/topics/{name}", b"1")
        assert await publisher.check(name) is TopicState.PRESENT
    assert (await resources.pulled("reader", 1))[0][0] == b"1"


@pytest.mark.parametrize("topic", ["", "ab", "goog-topic", "a b c", "projects/p/subscriptions/x", "../x", "a/b"])
async def test_an_impossible_topic_name_is_refused_before_anything_is_sent(topic: str) -> None:
    async with PubSubChannel(at(NOBODY)) as channel:
        with pytest.raises(PublishFailed) as raised:
            await Publisher(channel).publish(topic, b"1")
        assert not raised.value.is_retryable
        with pytest.raises(InvalidSetting):
            await Publisher(channel).check(topic)


def confirms_data(_method: str, request: bytes) -> bytes:
    """Answer a publish: the id of each message is its data."""
    return confirmed(*(message.data.decode() for message in PublishRequest.deserialize(request).messages))


async def test_concurrent_publishes_share_calls_and_each_caller_gets_its_own_id() -> None:
    async with (
        running_broker() as broker,
        PubSubChannel(at(broker.host)) as channel,
        Publisher(channel, replace(LONG_LIMITS, max_batch=50)) as publisher,
    ):
        broker.fault = confirms_data
        ids = await asyncio.gather(*(publisher.publish("results", b"%d" % n) for n in range(500)))
        assert broker.calls <= 12
    assert ids == [str(n) for n in range(500)]
    assert sorted(int(data) for _, data, _ in broker.published) == list(range(500))


async def test_a_batch_ends_at_its_bytes() -> None:
    sizes: list[int] = []
    async with (
        running_broker() as broker,
        PubSubChannel(at(broker.host)) as channel,
        Publisher(channel, replace(LONG_LIMITS, max_batch_bytes=100_000)) as publisher,
    ):
        broker.fault = lambda _method, request: sizes.append(len(request))
        await asyncio.gather(*(publisher.publish("results", b"x" * 30_000) for _ in range(20)))
        await publisher.publish("results", b"x" * 300_000)
    assert max(sizes[:-1]) <= 100_000
    assert sizes[-1] > 300_000


async def test_at_most_max_calls_run_at_once() -> None:
    async with (
        running_broker() as broker,
        PubSubChannel(at(broker.host)) as channel,
        Publisher(channel, replace(LONG_LIMITS, max_batch=1, max_calls=3)) as publisher,
    ):
        broker.is_hanging = True
        published = asyncio.gather(*(publisher.publish("results", b"x") for _ in range(30)))
        await wait_until_async(lambda: broker.calls == 3, "three calls that the broker does not answer yet")
        broker.is_hanging = False
        await published
        assert (broker.calls, broker.most_at_once) == (30, 3)


async def test_a_message_over_pubsubs_limits_is_never_sent() -> None:
    publisher = Publisher(PubSubChannel(at(NOBODY)))
    for data, attributes in (
        (b"x" * 10_000_001, {}),
        (b"x" * 9_999_999, {"a": "b"}),
        (b"x", {str(n): "" for n in range(101)}),
        (b"x", {"a": "ü" * 513}),
        (b"x", {"a" * 257: "b"}),
    ):
        with pytest.raises(ResultTooLarge) as raised:
            await publisher.publish("no-such-topic", data, attributes)
        assert raised.value.size > raised.value.limit


async def test_a_refused_result_is_reported_as_too_large_only_if_it_is_large() -> None:
    async with (
        running_broker() as broker,
        PubSubChannel(at(broker.host)) as channel,
        Publisher(channel) as publisher,
    ):
        broker.fault = lambda _method, _request: refusal("INVALID_ARGUMENT", "size exceeds the limit")
        with pytest.raises(ResultTooLarge):
            await publisher.publish("results", b"x" * (CERTAIN_BYTES + 1))
        with pytest.raises(PublishFailed) as raised:
            await publisher.publish("results", b"x")
        assert not raised.value.is_retryable


async def test_a_missing_topic_is_reported_at_once(channel: PubSubChannel) -> None:
    async with Publisher(channel) as publisher:
        assert await publisher.check("missing") is TopicState.MISSING
        with pytest.raises(PublishFailed, match="404") as raised:
            await publisher.publish("missing", b"x")
    assert raised.value.resource.endswith("/topics/missing")
    assert not raised.value.is_retryable


async def test_a_topic_that_may_not_be_read_is_hidden() -> None:
    async with (
        running_broker() as broker,
        PubSubChannel(at(broker.host)) as channel,
    ):
        broker.fault = lambda _method, _request: refusal("PERMISSION_DENIED")
        assert await Publisher(channel).check("results") is TopicState.HIDDEN
        broker.fault = lambda _method, _request: refusal("INTERNAL")
        with pytest.raises(PubSubFailed):
            await Publisher(channel).check("results")


async def test_an_invalid_publish_fails_no_other_in_its_batch(channel: PubSubChannel, resources: Resources) -> None:
    """An empty publish without attributes is one that the emulator refuses, with the whole call."""
    await resources.topic("results")
    await resources.subscription("reader", "results")
    async with Publisher(channel) as publisher:
        sent = [publisher.publish("results", data) for data in (b"1", b"", b"3")]
        first, bad, third = await asyncio.gather(*sent, return_exceptions=True)
    assert isinstance(bad, PublishFailed)
    assert isinstance(first, str)
    assert isinstance(third, str)
    assert sorted(data for data, _ in await resources.pulled("reader", 2)) == [b"1", b"3"]


async def test_an_attribute_with_invalid_unicode_fails_alone() -> None:
    async with (
        running_broker() as broker,
        PubSubChannel(at(broker.host)) as channel,
        Publisher(channel) as publisher,
    ):
        good, bad = await asyncio.gather(
            publisher.publish("results", b"1"),
            publisher.publish("results", b"2", {"a": "\ud800"}),
            return_exceptions=True,
        )
    assert isinstance(good, str)
    assert isinstance(bad, PublishFailed)


@pytest.mark.parametrize("status", ["RESOURCE_EXHAUSTED", "INTERNAL", "UNAVAILABLE", "ABORTED", "UNKNOWN", "CANCELLED"])
async def test_a_temporary_refusal_is_retried_until_confirmed(status: str) -> None:
    async with (
        running_broker() as broker,
        PubSubChannel(at(broker.host)) as channel,
        Publisher(channel, LONG_LIMITS) as publisher,
    ):

        def fault(_method: str, _request: bytes) -> Refusal | None:
            return refusal(status) if broker.calls < 3 else None

        broker.fault = fault
        assert await publisher.publish("results", b"x")
        assert broker.calls == 3


async def failure_after_an_attempt(publisher: Publisher, timeout_seconds: float) -> PublishFailed:
    """The failure of a publish that has made an attempt; on a busy machine, the first publishes may make none."""

    async def failures() -> list[PublishFailed]:
        with pytest.raises(PublishFailed) as raised:
            await publisher.publish("results", b"x", timeout_seconds=timeout_seconds)
        return [raised.value] if "; last: " in str(raised.value) else []

    [failure] = await wait_until_async(failures, "a publish with an attempt in its time", timeout_seconds=90)
    return failure


async def test_the_timeout_names_the_last_failure() -> None:
    async with (
        running_broker() as broker,
        PubSubChannel(at(broker.host)) as channel,
        Publisher(channel) as publisher,
    ):
        broker.fault = lambda _method, _request: refusal("UNAVAILABLE", "backend error")
        failed = await failure_after_an_attempt(publisher, 2)
    assert re.search(r"not confirmed in 2 s; last: .*backend error", str(failed))
    assert failed.is_retryable


async def test_a_refused_connection_is_retryable() -> None:
    async with PubSubChannel(at(NOBODY)) as channel, Publisher(channel) as publisher:
        failed = await failure_after_an_attempt(publisher, 3)
    assert "503" in str(failed)
    assert failed.is_retryable


def answers(body: bytes) -> Fault:
    return lambda _method, _request: body


def confirms_one_less(_method: str, request: bytes) -> bytes:
    return confirmed(*("1" for _ in PublishRequest.deserialize(request).messages[1:]))


async def test_a_partial_confirmation_confirms_nothing() -> None:
    async with (
        running_broker() as broker,
        PubSubChannel(at(broker.host)) as channel,
        Publisher(channel) as publisher,
    ):
        for fault in (confirms_one_less, answers(b"\xff no protobuf"), answers(b"")):
            broker.fault = fault
            sent = [publisher.publish("results", b"x", timeout_seconds=0.3) for _ in range(2)]
            for outcome in await asyncio.gather(*sent, return_exceptions=True):
                assert isinstance(outcome, PublishFailed)


async def test_a_broker_that_is_stopped_fails_publishes_and_works_again_when_resumed(
    own_emulator: PubSubEmulator,
) -> None:
    """F67: SIGSTOP keeps the connection open and answers nothing."""
    options = PubSubOptions(project_id="stopped", emulator_host=own_emulator.host)
    async with PubSubChannel(options) as channel:
        resources = Resources(options)
        await resources.topic("results")
        await resources.subscription("reader", "results")
        async with Publisher(channel, replace(LONG_LIMITS, call_timeout_seconds=5)) as publisher:
            await publisher.publish("results", b"before")
            own_emulator.process.send_signal(signal.SIGSTOP)
            with pytest.raises(PublishFailed, match=r"not confirmed in 0\.5 s"):
                await publisher.publish("results", b"lost", timeout_seconds=0.5)
            during = asyncio.ensure_future(publisher.publish("results", b"during"))
            own_emulator.process.send_signal(signal.SIGCONT)
            assert await during
            await publisher.publish("results", b"after")
        got = {data for data, _ in await resources.pulled("reader", 3)}
    assert {b"before", b"during", b"after"} <= got


async def test_publishes_to_a_crashed_broker_fail_as_retryable(own_emulator: PubSubEmulator) -> None:
    options = PubSubOptions(project_id="restarted", emulator_host=own_emulator.host)
    async with PubSubChannel(options) as channel, Publisher(channel) as publisher:
        await Resources(options).topic("results")
        await publisher.publish("results", b"1")
        own_emulator.process.kill()
        own_emulator.process.wait()
        with pytest.raises(PublishFailed) as raised:
            await publisher.publish("results", b"2", timeout_seconds=0.3)
        assert raised.value.is_retryable


def kept_batches() -> list[TopicBatches]:
    """Data that publishers of this process still hold of any topic."""
    gc.collect()
    return [each for each in gc.get_objects() if type(each) is TopicBatches]


async def test_close_sends_what_waits() -> None:
    async with running_broker() as broker, PubSubChannel(at(broker.host)) as channel:
        publisher = Publisher(channel, replace(LONG_LIMITS, linger_seconds=60))
        sent = [asyncio.ensure_future(publisher.publish("results", b"%d" % n)) for n in range(5)]
        await asyncio.sleep(0)
        await publisher.close(grace_seconds=60)
        assert all(await asyncio.gather(*sent))
        assert [data for _, data, _ in broker.published] == [b"%d" % n for n in range(5)]
        with pytest.raises(PublishFailed, match="closed"):
            await publisher.publish("results", b"late")


async def test_close_ends_after_the_grace_period() -> None:
    async with (
        running_broker() as broker,
        PubSubChannel(at(broker.host)) as channel,
    ):
        broker.fault = lambda _method, _request: refusal("UNAVAILABLE")
        publisher = Publisher(channel, PublisherOptions(max_batch=1, max_calls=1))
        sent = [asyncio.ensure_future(publisher.publish("results", b"x")) for _ in range(3)]
        await asyncio.sleep(0)
        await publisher.close(grace_seconds=0.2)
        assert kept_batches() == [], "no call is started for an abandoned publish"
        for outcome in await asyncio.gather(*sent, return_exceptions=True):
            assert isinstance(outcome, PublishFailed)


async def test_publishes_of_cancelled_callers_are_not_sent_or_kept() -> None:
    async with (
        running_broker() as broker,
        PubSubChannel(at(broker.host)) as channel,
        Publisher(channel, LONG_LIMITS) as publisher,
    ):
        gone = [asyncio.ensure_future(publisher.publish("results", b"gone")) for _ in range(10)]
        await asyncio.sleep(0)
        for caller in gone:
            caller.cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        await publisher.publish("results", b"stayed")
        assert broker.calls == 1
        await asyncio.sleep(0)
        assert kept_batches() == [], "requests name topics: an idle one must not stay in memory"
    assert [data for _, data, _ in broker.published] == [b"stayed"]


def test_every_grpc_status_is_retryable_or_final_as_googles_own_publisher_has_it() -> None:
    retryable = set()
    for code in grpc.StatusCode:
        if code is not grpc.StatusCode.OK:
            error = PubSubFailed("t", status=status_of(from_grpc_status(code, "m")), reason="")  # type: ignore[no-untyped-call]  # untyped
            assert error.status >= 400
            if error.is_retryable:
                retryable.add(code.name)
    also = {"ALREADY_EXISTS", "DATA_LOSS"}  # share a status with others; no publish meets them
    assert retryable - also == {
        "ABORTED", "CANCELLED", "DEADLINE_EXCEEDED", "INTERNAL", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "UNKNOWN",
    }  # fmt: skip


async def test_a_publish_that_passes_the_check_fits_a_call() -> None:
    """The checked size is at least what protobuf writes, for data and all attributes."""
    sizes: list[int] = []
    async with (
        running_broker() as broker,
        PubSubChannel(replace(at(broker.host), project_id="p" * 30)) as channel,
        Publisher(channel, LONG_LIMITS) as publisher,
    ):
        broker.fault = lambda _method, request: sizes.append(len(request))
        for data, attributes in (
            (b"x", {}),
            (b"x" * 1_000_000, {"a": "b"}),
            (b"x", {f"{n:0256}": "y" * 1_024 for n in range(100)}),
            (b"x", {str(n): "" for n in range(100)}),
        ):
            await publisher.publish("t" * 255, data, attributes)
            assert sizes[-1] <= check_limits(data, attributes) <= MAX_BYTES
    assert len(sizes) == 4
