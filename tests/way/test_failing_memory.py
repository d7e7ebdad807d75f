"""While the dedup store fails, pushes are still answered; when it is back, duplicates are dropped again.

Twice is better than not at all; F20, F24, F26 for the push door, as a process.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import pytest

from handlers.demo.valkey import find_valkey
from tests.chaos.proxy import Proxy
from tests.servers.redis_topologies import Server
from tests.waiting import wait_until_async
from tests.way.push_rig import Rig, open_rig


@dataclass
class DedupServer:
    """The server and the proxy to it."""

    server: Server
    line: Proxy


Fault = Callable[[DedupServer], AbstractContextManager[None]]


@pytest.fixture(scope="module")
def memory() -> Iterator[DedupServer]:
    server = Server(find_valkey(), "--appendonly", "yes")
    with Proxy(("127.0.0.1", server.port)) as line:
        yield DedupServer(server, line)
    server.stop()


@pytest.fixture
async def rig(memory: DedupServer) -> AsyncIterator[Rig]:
    async with open_rig(DEDUPE_REDIS_URL=f"redis://127.0.0.1:{memory.line.port}") as running:
        yield running


@contextlib.contextmanager
def down(memory: DedupServer) -> Iterator[None]:
    memory.server.kill()
    yield
    memory.server.start()


@contextlib.contextmanager
def silent(memory: DedupServer) -> Iterator[None]:
    memory.line.is_black_hole = True
    yield
    memory.line.is_black_hole = False
    memory.line.cut()


@contextlib.contextmanager
def read_only(memory: DedupServer) -> Iterator[None]:
    with memory.server.client() as client:
        client.replicaof("127.0.0.1", "1")
        yield
        client.replicaof("NO", "ONE")


@contextlib.contextmanager
def full(memory: DedupServer) -> Iterator[None]:
    with memory.server.client() as client:
        client.config_set("maxmemory", "1")
        yield
        client.config_set("maxmemory", "0")


@pytest.mark.parametrize("fault", [down, silent, read_only, full])
async def test_pushes_are_answered_without_the_dedup_store_and_deduplicated_when_it_is_back(
    rig: Rig, memory: DedupServer, fault: Fault
) -> None:
    assert (await rig.push(f"before-{fault.__name__}")).status_code == 204

    with fault(memory):
        answers = await asyncio.gather(*(rig.push(f"{fault.__name__}-{number}") for number in range(30)))
        reported = (await rig.client.get(rig.url.replace("/push", "/readyz"))).text

    assert {one.status_code for one in answers} == {204}
    assert "failing: memory for" in reported

    async def is_remembering() -> bool:
        name = f"after-{fault.__name__}-{len(rig.gateway.received)}"
        first = await rig.push(name)
        asked = len(rig.gateway.received)
        second = await rig.push(name)
        return (first.status_code, second.status_code) == (204, 204) and len(rig.gateway.received) == asked

    await wait_until_async(is_remembering, "deliveries to be known again, without a restart")
