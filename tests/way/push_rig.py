"""A push door as a process, with a scripted broker and gateway that can fail."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx

from handlers.demo.servers import Child
from handlers.demo.stack import ready_port
from tests.servers.pubsub_broker import PubSubBroker, running_broker
from tests.servers.raw_http import RawHttp, answer, running_raw_http
from tests.way.breakable import COMMAND


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
        body = json.dumps(request).encode()
        message = {"data": base64.b64encode(body).decode(), "messageId": request_id}
        frame = {"subscription": "projects/project-1/subscriptions/s", "message": message}
        return await self.client.post(self.url, json=frame)


@asynccontextmanager
async def open_rig(**variables: str) -> AsyncIterator[Rig]:
    """A door with these settings in addition to its own."""
    async with running_broker() as broker, running_raw_http() as gateway:
        gateway.say(answer(200, b'{"choices":[]}'))
        own = {
            "IGW_BASE_URL": f"http://127.0.0.1:{gateway.port}",
            "PUBSUB_EMULATOR_HOST": broker.host,
            "PROJECT_ID": "project-1",
            "RESULT_TOPIC_ID": "results",
            "PUSH_AUTH": "none",
            "HOST": "127.0.0.1",
            "PORT": "0",
            "LOG_FORMAT": "json",
            **variables,
        }
        with Child("push door", [COMMAND, "serve", "--target", "pubsub_push"], own) as door:
            port = await asyncio.to_thread(door.wait_for, ready_port, 60)
            async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=100)) as client:
                yield Rig(door, f"http://127.0.0.1:{port}/push", broker, gateway, client)
