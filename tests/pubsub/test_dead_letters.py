"""The layout on the emulator: requests that the door cannot answer return to it as dead letters.

The emulator accepts filters and ignores them. So these tests do not show that a door's own dead letters do not return
to it, and a door must not rely on the filter.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from handlers.pubsub.admin import LayoutOptions, layout, set_up
from handlers.pubsub.channel import PubSubChannel
from handlers.pubsub.publisher import Publisher
from handlers.pubsub.puller import Puller
from tests.pubsub.resources import Resources


class Door:
    """Nacks every request and accepts every dead letter."""

    def __init__(self) -> None:
        self.requests = 0
        self.dead_letters: asyncio.Queue[bytes] = asyncio.Queue()
        self.url = ""

    async def push(self, request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        if not body["subscription"].endswith("/async-proc-requests-dlq-push"):
            self.requests += 1
            return web.Response(status=503)
        self.dead_letters.put_nowait(base64.b64decode(body["message"]["data"]))
        return web.Response(status=204)


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    door = Door()
    application = web.Application()
    application.router.add_post("/", door.push)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    door.url = "http://{}:{}/".format(*runner.addresses[0][:2])
    yield door
    await runner.cleanup()


async def test_a_request_that_is_nacked_to_the_end_is_pushed_as_a_dead_letter_and_kept(
    channel: PubSubChannel, resources: Resources, door: Door
) -> None:
    options = LayoutOptions(
        project_id=channel.options.project_id,
        push_endpoint=door.url,
        max_delivery_attempts=5,
        minimum_backoff_seconds=0,
        maximum_backoff_seconds=0,
    )
    async for _ in set_up(channel, layout(options)):
        pass
    async with Publisher(channel) as publisher:
        await publisher.publish("async-proc-requests-dlq", b"put there by the door", {"reason": "no id"})
        await publisher.publish("async-proc-requests", b"hopeless")
    async with asyncio.timeout(60):
        while await door.dead_letters.get() != b"hopeless":
            pass
    assert door.requests == 5
    kept = Puller(channel, "sub-async-proc-requests-dlq")
    got: set[bytes] = set()
    while len(got) < 2:
        got |= {pulled.data for pulled in await kept.receive(10, wait_seconds=60)}
    assert got == {b"put there by the door", b"hopeless"}
