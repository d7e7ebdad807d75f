"""A push door as a process, with a scripted broker and gateway that can fail."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx

from handlers.demo.servers import Child
from handlers.demo.stack import ready_port
from tests.servers.forked import COMMAND, ForkedChild
from tests.servers.pubsub_broker import PubSubBroker, running_broker
from tests.servers.raw_http import RawHttp, answer, running_raw_http

PROJECT = "project-1"


def delivery_of(request: Mapping[str, object], message_id: str) -> dict[str, object]:
    """The body of a push of this request."""
    message = {"data": base64.b64encode(json.dumps(request).encode()).decode(), "messageId": message_id}
    return {"subscription": f"projects/{PROJECT}/subscriptions/s", "message": message}


@dataclass
class Rig:
    """The door, its broker and its gateway."""

    door: Child
    url: str
    broker: PubSubBroker
    gateway: RawHttp
    client: httpx.AsyncClient

    async def push(self, request_id: str, **metadata: str) -> httpx.Response:
        """Deliver one request; the same id is the same delivery."""
        request = {"id": request_id, "payload": {}, "deadline": 1_999_999_999, "metadata": metadata}
        return await self.client.post(self.url, json=delivery_of(request, request_id))

    def asked(self) -> int:
        """How many requests have reached the gateway."""
        return len(self.gateway.received)


@asynccontextmanager
async def open_rig(**variables: str) -> AsyncIterator[Rig]:
    """A door with these settings in addition to its own."""
    async with running_broker() as broker, running_raw_http() as gateway:
        gateway.reply(answer(200, b'{"choices":[]}'))
        async with open_door(broker, gateway, **variables) as rig:
            yield rig


@asynccontextmanager
async def open_door(broker: PubSubBroker, gateway: RawHttp, **variables: str) -> AsyncIterator[Rig]:
    """One more door before the same broker and gateway."""
    own = {
        "IGW_BASE_URL": f"http://127.0.0.1:{gateway.port}",
        "PUBSUB_EMULATOR_HOST": broker.host,
        "PROJECT_ID": PROJECT,
        "RESULT_TOPIC_ID": "results",
        "PUSH_AUTH": "none",
        "HOST": "127.0.0.1",
        "PORT": "0",
        "LOG_FORMAT": "json",
        **variables,
    }
    with ForkedChild("push door", [COMMAND, "serve", "--target", "pubsub_push"], own) as door:
        port = await asyncio.to_thread(door.wait_for, ready_port, 60)
        async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=100)) as client:
            yield Rig(door, f"http://127.0.0.1:{port}/push", broker, gateway, client)
