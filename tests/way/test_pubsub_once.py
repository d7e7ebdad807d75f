"""Duplicate deliveries are answered once with a dedup store; real handler, own pusher."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import msgspec
import pytest

from handlers.client import AsyncClient
from handlers.demo.pubsub_emulator import DEMO_PROJECT, RESULT_TOPIC, NoEmulator, find_emulator
from handlers.demo.servers import Child
from handlers.demo.stack import Stack, StackOptions
from handlers.demo.valkey import Valkey, find_valkey
from tests.servers.presence import not_found
from tests.waiting import elapse_async, wait_until_async
from tests.way.push_rig import open_rig

LEASE_SECONDS, TOKEN_SECONDS = 5.0, 0.01


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    found = find_emulator()
    if isinstance(found, NoEmulator):
        not_found(f"the Pub/Sub emulator ({found.reason})")
    with Stack(
        StackOptions(
            gateway_arguments=("--time-to-first-token", "0.3", "--time-per-token", str(TOKEN_SECONDS))
        )
    ) as running:
        yield running


@contextmanager
def open_door(stack: Stack) -> Iterator[tuple[str, Child]]:
    """A push door with a dedup store and a short lease, which it must renew."""
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
        "LEASE_SECONDS": str(LEASE_SECONDS),
        "HEARTBEAT_SECONDS": "0.3",
    }
    command = [*stack.children["pubsub_push"].process.args[:1], "serve", "--target", "pubsub_push"]  # type: ignore[index]  # a list
    with Child("push door", [str(part) for part in command], variables) as child:
        line = child.wait_for(lambda output: output if "ready" in output else None)
        yield f"http://127.0.0.1:{line.split('port=')[1].split()[0]}/push", child


@pytest.fixture(scope="module")
def door(stack: Stack) -> Iterator[str]:
    with open_door(stack) as (url, _):
        yield url


def push(request_id: str) -> bytes:
    return push_of({"id": request_id, "payload": {"user": request_id}, "deadline": 1_999_999_999})


def push_of(body: dict[str, object], project: str = DEMO_PROJECT) -> bytes:
    message = {"data": base64.b64encode(msgspec.json.encode(body)).decode(), "messageId": "1"}
    return msgspec.json.encode({"subscription": f"projects/{project}/subscriptions/s", "message": message})


async def completions(client: httpx.AsyncClient, stack: Stack) -> int:
    state = (await client.get(f"{stack.gateway_url}/simulate/state")).json()
    return int(state["statuses"].get("200", 0))


async def test_a_delivery_that_was_answered_is_acked_without_a_second_inference(
    stack: Stack, door: str
) -> None:
    async with httpx.AsyncClient(timeout=60) as client:
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

        await wait_until_async(is_running, "the request at the gateway")
        async with AsyncClient.for_pubsub(
            DEMO_PROJECT, emulator_host=stack.emulator_host, cancel_redis_url=stack.redis_url
        ) as producer:
            await producer.cancel("cancel-1")

        assert (await pushed).status_code == 204

        async def is_free() -> bool:
            return await running() == 0

        await wait_until_async(is_free, "the gateway to be free")


async def test_of_two_deliveries_at_once_one_is_answered_and_one_comes_back(stack: Stack, door: str) -> None:
    async with httpx.AsyncClient(timeout=60) as client:
        before = await completions(client, stack)

        answers = await asyncio.gather(*(client.post(door, content=slow_push("once-2", 2)) for _ in range(2)))

        assert sorted(answer.status_code for answer in answers) == [204, 503]
        assert await completions(client, stack) == before + 1


async def running(client: httpx.AsyncClient, stack: Stack) -> int:
    return int((await client.get(f"{stack.gateway_url}/simulate/state")).json()["running"])


def slow_push(request_id: str, seconds: float) -> bytes:
    payload = {"user": request_id, "max_tokens": round(seconds / TOKEN_SECONDS)}
    return push_of({"id": request_id, "payload": payload, "deadline": 1_999_999_999})


async def test_while_a_long_one_is_answered_its_copy_comes_back_however_often_the_lease_ends(
    stack: Stack, door: str
) -> None:
    """F61."""
    async with httpx.AsyncClient(timeout=60) as client:
        before = await completions(client, stack)
        first = asyncio.create_task(client.post(door, content=slow_push("once-3", 2 * LEASE_SECONDS)))
        await elapse_async(1.2 * LEASE_SECONDS, "a lease that nobody renews would have ended")

        copy = await client.post(door, content=slow_push("once-3", 2 * LEASE_SECONDS))

        assert not first.done()
        assert (copy.status_code, (await first).status_code) == (503, 204)
        assert await completions(client, stack) == before + 1


async def test_a_delivery_of_a_killed_door_is_answered_by_another_when_its_lease_ends(
    stack: Stack, door: str
) -> None:
    """F2."""
    async with httpx.AsyncClient(timeout=60) as client:
        body = slow_push("once-4", 3)
        with open_door(stack) as (url, child):
            pushed = asyncio.create_task(client.post(url, content=body))

            async def is_under_way() -> bool:
                return await running(client, stack) > 0

            await wait_until_async(is_under_way, "the request at the gateway")
            child.process.kill()
            with pytest.raises(httpx.TransportError):
                await pushed

        async def is_answered() -> bool:
            return (await client.post(door, content=body)).status_code == 204

        await wait_until_async(is_answered, "another door to answer it")


async def test_a_burst_of_deliveries_is_remembered_each_and_every_one() -> None:
    """F60: more at once than there are connections to the dedup store."""
    with Valkey(find_valkey()) as memory:
        async with open_rig(DEDUPE_REDIS_URL=memory.url) as rig:
            names = [f"burst-{number}" for number in range(90)]
            first = await asyncio.gather(*(rig.push(name) for name in names))
            asked = len(rig.gateway.received)
            second = await asyncio.gather(*(rig.push(name) for name in names))

            assert {one.status_code for one in [*first, *second]} == {204}
            assert asked == len(rig.gateway.received) == len(names)
            assert "not remembered" not in rig.door.output()
