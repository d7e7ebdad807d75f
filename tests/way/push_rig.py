"""A push door as a process; its broker and its gateway are scripted, so that they can fail."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import psutil

from handlers.demo.servers import Child
from handlers.demo.stack import ready_port
from tests.servers.pubsub_broker import PubSubBroker, running_broker
from tests.servers.raw_http import RawHttp, answer, running_raw_http
from tests.waiting import elapse_async
from tests.way.breakable import COMMAND

MOST_CPU = 0.05
"""Of one core; about 0.01 is measured. A loop without pauses takes all it gets."""
WINDOW_SECONDS = 4.0


@dataclass
class Rig:
    """The door, and what it needs."""

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

    async def cpu_share(self, seconds: float) -> float:
        """What part of one core the door uses over the next seconds."""
        process = psutil.Process(self.door.process.pid)
        before, began = process.cpu_times(), time.monotonic()
        await elapse_async(seconds, "what a door costs that cannot reach what it needs")
        after = process.cpu_times()
        used = after.user + after.system - before.user - before.system
        return float(used / (time.monotonic() - began))

    def rss_mb(self) -> float:
        """The door's memory."""
        return float(psutil.Process(self.door.process.pid).memory_info().rss / 1_000_000)


@asynccontextmanager
async def open_rig(**variables: str) -> AsyncIterator[Rig]:
    """A door with these settings beside its own."""
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
