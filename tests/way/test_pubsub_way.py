"""End to end on the Pub/Sub emulator: publish, push, inference, result."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Sequence

import msgspec
import pytest

from handlers.demo.pubsub_emulator import DEMO_PROJECT, REQUEST_TOPIC, RESULT_SUBSCRIPTION
from handlers.demo.stack import Stack
from handlers.pubsub.channel import PubSubChannel, PubSubOptions
from handlers.pubsub.publisher import Publisher
from handlers.pubsub.puller import Pulled, Puller
from tests.servers.presence import not_found

GUIDES_REQUEST = (
    '{"id" : "testmsg", "payload":{ "model":"your-model", "prompt":"Hi, good morning "}, "deadline" :"1999999999" }'
)


@pytest.fixture
async def channel(pubsub_stack: Stack) -> AsyncIterator[PubSubChannel]:
    options = PubSubOptions(project_id=DEMO_PROJECT, emulator_host=pubsub_stack.emulator_host)
    opened = PubSubChannel(options)
    yield opened
    await opened.close()


async def pulled(channel: PubSubChannel, count: int) -> list[Pulled]:
    """The next `count` results."""
    puller, found = Puller(channel, RESULT_SUBSCRIPTION), list[Pulled]()
    async with asyncio.timeout(60):
        while len(found) < count:
            some = await puller.receive(10, wait_seconds=60)
            if some:
                await puller.ack([one.ack_id for one in some])
            found += some
    return found


async def publish(channel: PubSubChannel, bodies: Sequence[bytes], attributes: dict[str, str] | None = None) -> None:
    async with Publisher(channel) as publisher:
        await asyncio.gather(*(publisher.publish(REQUEST_TOPIC, body, attributes) for body in bodies))


async def test_a_published_request_becomes_a_result_with_a_dedupe_key(
    channel: PubSubChannel,
) -> None:
    await publish(channel, [GUIDES_REQUEST.encode()], {"result_route": "team-a"})

    (one,) = await pulled(channel, 1)

    result = msgspec.json.decode(one.data)
    assert (result["id"], result["status_code"]) == ("testmsg", 200)
    assert one.attributes["id"] == "testmsg"
    assert one.attributes["result_route"] == "team-a"
    assert one.attributes["pubsub_message_id"]


async def test_a_refused_request_is_redelivered_and_answered(channel: PubSubChannel) -> None:
    body = b'{"id":"p1","payload":{"simulate":{"key":"p1","status":503,"times":1}},"deadline":1999999999}'
    await publish(channel, [body])

    (one,) = await pulled(channel, 1)

    assert msgspec.json.decode(one.data)["status_code"] == 200


async def test_bad_requests_get_their_results_and_are_not_delivered_again(channel: PubSubChannel) -> None:
    await publish(channel, [b'{"id":"p2","payload":{},"deadline":0}', b'{"id":"p3","payload":1,"deadline":1999999999}'])

    results = {msgspec.json.decode(one.data)["id"]: msgspec.json.decode(one.data) for one in await pulled(channel, 2)}

    assert {results[name]["error_code"] for name in ("p2", "p3")} == {"INVALID_REQUEST"}


async def test_the_guides_own_gcloud_commands_work_as_written(pubsub_stack: Stack) -> None:
    gcloud = shutil.which("gcloud")
    if gcloud is None:
        not_found("gcloud")
    environment = {
        **os.environ,
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_PUBSUB": f"http://{pubsub_stack.emulator_host}/",
        "CLOUDSDK_CORE_PROJECT": DEMO_PROJECT,
        "CLOUDSDK_AUTH_DISABLE_CREDENTIALS": "true",
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
    }

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [gcloud, "pubsub", *arguments],
            check=False,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    await asyncio.to_thread(run, "topics", "publish", REQUEST_TOPIC, f"--message={GUIDES_REQUEST}")
    output = ""
    async with asyncio.timeout(60):
        while "testmsg" not in output:
            output = await asyncio.to_thread(
                run, "subscriptions", "pull", RESULT_SUBSCRIPTION, "--auto-ack", "--limit=1"
            )
    assert "status_code" in output
