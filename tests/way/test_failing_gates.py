"""While the Redis of a door's gates fails, pushes wait or are nacked; the door continues by itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest

from handlers.demo.valkey import find_valkey
from tests.chaos.proxy import Proxy
from tests.servers.redis_topologies import Server
from tests.waiting import wait_until_async
from tests.way.push_rig import Rig, open_rig

GATES: dict[str, dict[str, object]] = {
    "redis-quota": {"limit": 1_000, "mode": "concurrency"},
    "redis": {"budget_key": "budget"},
}
Fault = Callable[[Server, Proxy], AbstractContextManager[None]]


@pytest.fixture(scope="module")
def store() -> Iterator[tuple[Server, Proxy]]:
    server = Server(find_valkey(), "--appendonly", "yes")
    with Proxy(("127.0.0.1", server.port)) as line:
        yield server, line
    server.stop()


@pytest.fixture(params=GATES)
async def rig(request: pytest.FixtureRequest, store: tuple[Server, Proxy], tmp_path: Path) -> AsyncIterator[Rig]:
    address = f"127.0.0.1:{store[1].port}"
    topic = {
        "subscriber_id": "s",
        "gate_type": request.param,
        "gate_params": {"address": address, **GATES[request.param]},
    }
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"topics": [topic]}))
    async with open_rig(CONFIG_FILE=str(config), GATE_REFRESH_SECONDS="0.3") as running:
        yield running


@contextlib.contextmanager
def down(server: Server, _line: Proxy) -> Iterator[None]:
    server.kill()
    yield
    server.start()


@contextlib.contextmanager
def silent(_server: Server, line: Proxy) -> Iterator[None]:
    line.is_black_hole = True
    yield
    line.is_black_hole = False
    line.cut()


@pytest.mark.parametrize("fault", [down, silent])
async def test_while_the_redis_of_its_gates_fails_nothing_is_lost(
    rig: Rig, store: tuple[Server, Proxy], fault: Fault
) -> None:
    async def is_answered(name: str) -> bool:
        return (await rig.push(name, userid="a")).status_code == 204

    async def readiness() -> tuple[int, str]:
        answer = await rig.client.get(rig.url.replace("/push", "/readyz"))
        return answer.status_code, answer.text

    async def is_reported() -> bool:
        status, text = await readiness()
        return status == 200 and "failing: gates for" in text

    async def is_ready() -> bool:
        return await readiness() == (200, "ready\n")

    await wait_until_async(partial(is_answered, "before"), "an open gate")

    with fault(*store):
        first = [asyncio.create_task(rig.push(f"first-{number}", userid="a")) for number in range(3)]
        await wait_until_async(is_reported, "the door to report it")
        # Only now, because requests may still pass by the gate's last answer.
        pushes = [asyncio.create_task(rig.push(f"r{number}", userid="a")) for number in range(20)]
        assert not any(one.done() and one.result().status_code == 204 for one in pushes), "closed, not open"

    answers = await asyncio.gather(*first, *pushes)
    assert {one.status_code for one in answers} <= {204, 429, 503}

    names = [*(f"first-{number}" for number in range(3)), *(f"r{number}" for number in range(20))]
    for name, one in zip(names, answers, strict=True):
        if one.status_code != 204:
            await wait_until_async(partial(is_answered, name), "an answer, without a restart")
    await wait_until_async(is_ready, "ready, without a restart")
