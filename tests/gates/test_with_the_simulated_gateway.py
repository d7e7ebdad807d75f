"""The prometheus-* gates with a Prometheus that scrapes the gateway, and requests that fill it."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import aiohttp
import pytest

from handlers.demo.servers import Child
from handlers.gates.sources import GateSources
from tests.gates.building import ReadableLog, sources
from tests.gates.opening import started
from tests.servers.prometheus import running_prometheus
from tests.waiting import wait_until_async

CAPACITY = 4
QUERY = 'max(1 - llm_d_epp_flow_control_pool_saturation{inference_pool="%s"})'
_LISTENING = re.compile(r"listening on (http://\S+)")


@pytest.fixture(scope="module")
def gateway_url() -> Iterator[str]:
    command = [sys.executable, "-m", "handlers.demo.gateway", "--host", "127.0.0.1", "--port", "0"]
    command += ["--capacity", str(CAPACITY), "--queue-size", "50", "--time-per-token", "0.05"]
    with Child("gateway", command) as child:
        yield child.wait_for(lambda output: found[1] if (found := _LISTENING.search(output)) else None)


@pytest.fixture(scope="module")
def prometheus_url(gateway_url: str) -> Iterator[str]:
    with running_prometheus([gateway_url.removeprefix("http://")]) as url:
        yield url


@pytest.fixture
async def pool(gateway_url: str) -> str:
    """The name of the gateway's pool."""
    async with aiohttp.ClientSession() as session, session.get(f"{gateway_url}/metrics") as answer:
        found = re.search(r'pool_saturation\{inference_pool="([^"]+)"', await answer.text())
    assert found
    return found[1]


@pytest.fixture
async def given(prometheus_url: str) -> AsyncIterator[GateSources]:
    made = sources(prometheus_url=prometheus_url, log=ReadableLog())
    yield made
    await made.http.aclose()


async def test_each_gate_follows_the_load_of_the_gateway(given: GateSources, gateway_url: str, pool: str) -> None:
    async with (
        started("prometheus-saturation", {"pool": pool}, given) as by_saturation,
        started("prometheus-budget", {"pool": pool, "max_concurrency": str(CAPACITY)}, given) as by_budget,
        started("prometheus-query", {"query": QUERY % pool}, given) as by_query,
        aiohttp.ClientSession() as session,
    ):
        gates = (by_saturation, by_budget, by_query)

        async def until(is_so: Callable[[float], bool], what: str) -> None:
            await wait_until_async(
                lambda: all(is_so(gate.budget()) for gate in gates),
                f"{what}: {[gate.state() for gate in gates]}",
            )

        await until(lambda budget: budget > 0.5, "open while idle")
        body = {"model": "m", "prompt": "x", "max_tokens": 10_000}
        asking = [
            asyncio.create_task(_ask(session, f"{gateway_url}/v1/completions", body)) for _ in range(3 * CAPACITY)
        ]
        await until(lambda budget: budget == 0, "closed while the gateway is full")
        for one in asking:
            one.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        await until(lambda budget: budget > 0.5, "open again")


async def _ask(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> None:
    async with session.post(url, json=body) as answer:
        await answer.read()
