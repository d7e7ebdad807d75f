"""A poller and a push door use little CPU and no more memory while Redis, the gateway or the result topic fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.servers.pubsub_broker import refuses
from tests.waiting import elapse, wait_until, wait_until_async
from tests.way.breakable import Breakable
from tests.way.push_rig import open_rig
from tests.way.test_failing_gateway import openings
from tests.way.test_failing_redis import Fault, black_hole, busy, down, full, loading, read_only

pytestmark = [pytest.mark.bench, pytest.mark.timeout(300)]

MOST_CPU_SHARE = 0.10
"""Of one core; 0.01 to 0.04 is measured on an idle machine. A loop without pauses uses a whole core."""
MOST_GROWTH_MB = 20
WINDOW_SECONDS = 4.0


@pytest.fixture(scope="module")
def rig() -> Iterator[Breakable]:
    with Breakable() as running:
        yield running


def assert_cheap(pid: int) -> None:
    """Fail if the process uses much CPU, or more memory at the end than at the beginning, in the next seconds."""
    process = psutil.Process(pid)
    memory, before, began = process.memory_info().rss, process.cpu_times(), time.monotonic()
    elapse(WINDOW_SECONDS, "the CPU time of a window is measured")
    after, lasted = process.cpu_times(), time.monotonic() - began
    share = (after.user + after.system - before.user - before.system) / lasted
    grown_mb = (process.memory_info().rss - memory) / 1_000_000
    print(f"{share:.3f} of a core, {grown_mb:+.1f} MB")
    assert share < MOST_CPU_SHARE
    assert grown_mb < MOST_GROWTH_MB


@pytest.mark.parametrize("fault", [down, loading, read_only, full, busy, black_hole])
def test_a_poller_whose_redis_fails_is_cheap(rig: Breakable, fault: Fault) -> None:
    ids = rig.queue(120)
    with fault(rig):
        wait_until(lambda: rig.ready()[0] == 503, "the poller to report it")
        assert_cheap(rig.pid)
    rig.wait_for_results(ids)


@pytest.mark.parametrize("fault", ["hang", "reset", "garbage", "status_503"])
def test_a_poller_whose_gateway_fails_is_cheap(rig: Breakable, fault: str) -> None:
    opened = openings(rig)
    rig.set_faults(**{fault: 1.0})
    ids = rig.queue(150)
    wait_until(lambda: openings(rig) > opened, "an open circuit")
    wait_until(lambda: rig.in_flight() <= 2, "only probes in flight")
    assert_cheap(rig.pid)
    rig.set_faults()
    rig.wait_for_results(ids)


@pytest.mark.parametrize("status", ["RESOURCE_EXHAUSTED", "INTERNAL", "UNAVAILABLE"])
async def test_a_push_door_whose_topic_fails_is_cheap(status: str) -> None:
    async with open_rig() as door:
        assert (await door.push("before")).status_code == 204
        door.broker.fault = refuses(status)
        pushes = [asyncio.create_task(door.push(f"r{number}")) for number in range(30)]
        tried = door.broker.calls
        await wait_until_async(lambda: door.broker.calls > tried, "a publish that fails")
        await asyncio.to_thread(assert_cheap, door.door.process.pid)
        door.broker.fault = lambda _method, _request: None
        await asyncio.gather(*pushes)
