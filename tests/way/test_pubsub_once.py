"""Deliveries that come twice are answered once, where a Redis remembers; real handler, own pusher."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator

import httpx
import msgspec
import pytest

from handlers.client import AsyncClient
from handlers.demo.child import Child
from handlers.demo.pubsub_emulator import NoEmulator, find_emulator
from handlers.demo.pubsub_layout import DEMO_PROJECT, RESULT_TOPIC
from handlers.demo.stack import Stack, StackOptions
from tests.servers.presence import not_found
from tests.waiting import wait_until_async


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    found = find_emulator()
    if isinstance(found, NoEmulator):
        not_found("the Pub/Sub emulator", found.reason)
    with Stack(StackOptions(gateway_arguments=("--time-to-first-token", "0.3"))) as running:
        yield running


@pytest.fixture(scope="module")
def door(stack: Stack) -> Iterator[str]:
    """A push door that remembers."""
    variables = {
        "IGW_BASE_URL": stack.gateway_url,
        "PUBSUB_EMULATOR_HOST": stack.emulator_host,
        "PROJECT_ID": DEMO_PROJECT,
        "RESULT_TOPIC_ID": RESULT_TOPIC,
        "PUSH_AUTH": "none",
        "DEDUPE_REDIS_URL": stack.redis_url,
        "HOST": "127.0.0.1",
        "PORT": "0",
        "LOG_FORMAT": "text",
    }
    command = [*stack.children["pubsub_push"].process.args[:1], "serve", "--target", "pubsub_push"]  # type: ignore[index]  # a list
    with Child("push door", [str(part) for part in command], variables) as child:
        line = child.wait_for(lambda output: output if "ready" in output else None)
        yield f"http://127.0.0.1:{line.split('port=')[1].split()[0]}/push"


def push(request_id: str) -> bytes:
    return push_of({"id": request_id, "payload": {"user": request_id}, "deadline": 1_999_999_999})


def push_of(body: dict[str, object]) -> bytes:
    message = {"data": base64.b64encode(msgspec.json.encode(body)).decode(), "messageId": "1"}
    return msgspec.json.encode({"subscription": "projects/p/subscriptions/s", "message": message})


async def completions(client: httpx.AsyncClient, stack: Stack) -> int:
    state = (await client.get(f"{stack.gateway_url}/simulate/state")).json()
    return int(state["statuses"].get("200", 0))


async def test_a_delivery_that_was_answered_is_acked_without_a_second_inference(
    stack: Stack, door: str
) -> None:
    async with httpx.AsyncClient(timeout=20) as client:
        before = await completions(client, stack)

        first = await client.post(door, content=push("once-1"))
        second = await client.post(door, content=push("once-1"))

        assert (first.status_code, second.status_code) == (204, 204)
        assert await completions(client, stack) == before + 1


async def test_a_cancelled_delivery_is_answered_and_the_gateway_is_free(stack: Stack, door: str) -> None:
    async with httpx.AsyncClient(timeout=60) as client:
        body = {
            "id": "cancel-1",
            "payload": {"prompt": "all", "max_tokens": 100_000},
            "deadline": 4_000_000_000,
        }
        pushed = asyncio.create_task(client.post(door, content=push_of(body)))

        async def running() -> int:
            return int((await client.get(f"{stack.gateway_url}/simulate/state")).json()["running"])

        async def is_running() -> bool:
            return await running() > 0

        await wait_until_async(is_running, 30, "the request at the gateway")
        async with AsyncClient.for_pubsub(
            DEMO_PROJECT, emulator_host=stack.emulator_host, cancel_redis_url=stack.redis_url
        ) as producer:
            await producer.cancel("cancel-1")

        assert (await pushed).status_code == 204

        async def is_free() -> bool:
            return await running() == 0

        await wait_until_async(is_free, 30, "the gateway to be free")


async def test_of_two_deliveries_at_once_one_is_answered_and_one_comes_back(stack: Stack, door: str) -> None:
    async with httpx.AsyncClient(timeout=20) as client:
        before = await completions(client, stack)

        answers = await asyncio.gather(*(client.post(door, content=push("once-2")) for _ in range(2)))

        assert sorted(answer.status_code for answer in answers) == [204, 503]
        assert await completions(client, stack) == before + 1
