"""A result topic that refuses: the push door keeps the delivery open, costs nothing, and acks when it is taken. F64."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
from aiohttp import web

from handlers.demo.child import Child
from handlers.demo.stack import ready_port
from tests.pubsub.broker_proxy import BrokerProxy, Fault, broker_proxy, refusal
from tests.servers.raw_http import answer, running_raw_http
from tests.waiting import elapse_async, wait_until_async

COMMAND = str(Path(sys.executable).parent / "async-processor")
MOST_CPU = 0.10
"""Of one core; about 0.01 is measured."""
WINDOW_SECONDS = 2.0


def takes(body: bytes) -> web.Response:
    """A topic that is there and takes everything."""
    messages = json.loads(body or b"{}").get("messages", [])
    return web.json_response({"messageIds": [str(number) for number in range(len(messages))]})


def refuses(status: int) -> Fault:
    """A topic that answers every publish like this."""
    return lambda body: refusal(status) if body else takes(body)


@dataclass
class Rig:
    """A push door as a process; its broker and its gateway are scripted."""

    door: Child
    url: str
    broker: BrokerProxy
    client: httpx.AsyncClient

    async def push(self, request_id: str) -> httpx.Response:
        body = json.dumps({"id": request_id, "payload": {}, "deadline": 1_999_999_999}).encode()
        message = {"data": base64.b64encode(body).decode(), "messageId": request_id}
        frame = {"subscription": "projects/project-1/subscriptions/s", "message": message}
        return await self.client.post(self.url, json=frame)

    async def cpu_share(self, seconds: float) -> float:
        """What part of one core the door uses over the next seconds."""
        process = psutil.Process(self.door.process.pid)
        before, began = process.cpu_times(), time.monotonic()
        await elapse_async(seconds, "what a door costs whose broker refuses")
        after = process.cpu_times()
        used = after.user + after.system - before.user - before.system
        return float(used / (time.monotonic() - began))


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with broker_proxy("") as broker, running_raw_http() as gateway:
        broker.fault = takes
        gateway.say(answer(200, b'{"choices":[]}'))
        variables = {
            "IGW_BASE_URL": f"http://127.0.0.1:{gateway.port}",
            "PUBSUB_EMULATOR_HOST": broker.host,
            "PROJECT_ID": "project-1",
            "RESULT_TOPIC_ID": "results",
            "PUSH_AUTH": "none",
            "HOST": "127.0.0.1",
            "PORT": "0",
            "LOG_FORMAT": "json",
        }
        with Child("push door", [COMMAND, "serve", "--target", "pubsub_push"], variables) as door:
            port = await asyncio.to_thread(door.wait_for, ready_port)
            async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=100)) as client:
                yield Rig(door, f"http://127.0.0.1:{port}/push", broker, client)


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_deliveries_stay_open_until_the_topic_takes_their_results(rig: Rig, status: int) -> None:
    """F64, I5: no 204 before the broker has it, no busy loop meanwhile."""
    assert (await rig.push("before")).status_code == 204
    rig.broker.fault = refuses(status)
    pushes = [asyncio.create_task(rig.push(f"r{number}")) for number in range(30)]
    tried = rig.broker.calls
    await wait_until_async(lambda: rig.broker.calls > tried + 3, 30, "publishes that were refused")

    before = rig.broker.calls
    share = await rig.cpu_share(WINDOW_SECONDS)
    tries = rig.broker.calls - before
    assert not any(one.done() for one in pushes)
    rig.broker.fault = takes

    answers = await asyncio.gather(*pushes)
    assert {one.status_code for one in answers} <= {204, 503}
    again = [await rig.push(f"r{number}") for number, one in enumerate(answers) if one.status_code == 503]
    assert all(one.status_code == 204 for one in again)
    assert share < MOST_CPU
    assert tries <= 4 * 10 * WINDOW_SECONDS, "four calls at a time at most, with growing pauses between"


@pytest.mark.parametrize("status", [403, 404])
async def test_a_topic_that_is_not_for_us_nacks_at_once_and_says_when_to_come_back(
    rig: Rig, status: int
) -> None:
    """F64: repeating cannot help, so the delivery is not held; nothing is acked."""
    rig.broker.fault = refuses(status)

    refused = await rig.push("r")

    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert "result not published" in rig.door.output()
    rig.broker.fault = takes
    assert (await rig.push("r")).status_code == 204
