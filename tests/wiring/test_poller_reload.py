"""A reload changes a running poller in place: limits hold, requests finish, unused parts end."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from redis.asyncio import Redis

from handlers.contract.errors import InvalidSetting
from handlers.demo.servers import free_port
from handlers.demo.valkey import Valkey
from handlers.settings.settings import Settings, load_settings
from handlers.wiring.poller import PollerApp
from tests.waiting import wait_until_async

LOCAL = "local-max-concurrency"
Entry = dict[str, Any]


class Gateway:
    """Answers requests once `go` is set. `running` and `peak` count those that it holds, `seen` all."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.running = self.peak = self.seen = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError), contextlib.closing(writer):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n")[0]))
                self.seen += 1
                self.running += 1
                self.peak = max(self.peak, self.running)
                try:
                    await self.go.wait()
                finally:
                    self.running -= 1
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
                await writer.drain()


class Reloading:
    """A running poller, its gateway, and the configuration that it has."""

    def __init__(self, store: Redis, redis_url: str, path: Path) -> None:
        self.store = store
        self.gateway = Gateway()
        self.app: PollerApp
        self._numbers = itertools.count()
        self._path = path
        self._variables = {"REDIS_URL": redis_url, "CONFIG_FILE": str(path)}
        self._variables["METRICS_PORT"] = str(free_port())
        self._variables |= {"LEASE_SECONDS": "600", "REDIS_TIMEOUT_SECONDS": "60"}  # the counts are exact

    def settings(self, queues: list[Entry], pools: list[Entry] | None = None, **more: Any) -> Settings:
        self._path.write_text(json.dumps({"queues": queues, "pools": pools or [], **more}))
        return load_settings(self._variables)

    async def change(self, queues: list[Entry], pools: list[Entry] | None = None, **more: Any) -> None:
        await self.app.reload(self.settings(queues, pools, **more))

    @contextlib.asynccontextmanager
    async def running(self, queues: list[Entry], pools: list[Entry] | None = None) -> AsyncIterator[None]:
        server = await asyncio.start_server(self.gateway.serve, "127.0.0.1")
        port = server.sockets[0].getsockname()[1]
        self._variables["IGW_BASE_URL"] = f"http://127.0.0.1:{port}"
        self.app = PollerApp(self.settings(queues, pools))
        polling = asyncio.create_task(self.app.run())
        try:
            await wait_until_async(lambda: self.app.has_begun, "the poller's start")
            yield
        finally:
            self.gateway.go.set()
            self.app.stop()
            await polling
            server.close()

    async def page(self) -> str:
        """The page of metrics."""
        url = f"http://127.0.0.1:{self._variables['METRICS_PORT']}/metrics"
        async with aiohttp.ClientSession() as client, client.get(url) as response:
            return await response.text()

    async def submit(self, name: str, count: int, store: Redis | None = None) -> None:
        deadline = time.time() + 3_600
        members = [
            json.dumps({"id": f"{next(self._numbers)}", "deadline": int(deadline), "payload": {}}) for _ in range(count)
        ]
        await (store or self.store).zadd(name, dict.fromkeys(members, deadline))

    async def at_gateway(self, count: int) -> None:
        await wait_until_async(lambda: self.gateway.running == count, f"{count} at the gateway")

    async def answered(self, count: int, store: Redis | None = None, name: str = "result-list") -> None:
        async def is_answered() -> bool:
            return await (store or self.store).llen(name) == count

        await wait_until_async(is_answered, f"{count} results in {name}")


@pytest.fixture
def reloading(store: Redis, valkey: Valkey, tmp_path: Path) -> Reloading:
    return Reloading(store, valkey.url, tmp_path / "config.json")


A, B = {"queue_name": "a"}, {"queue_name": "b"}
TWO = [{"id": "default", "workers": 2}]


async def test_a_gate_without_a_queue_is_logged_at_the_start_and_after_a_reload(
    reloading: Reloading, caplog: pytest.LogCaptureFixture
) -> None:
    pools = [{"id": "big", "gate_type": "constant"}]
    async with reloading.running([A], pools):
        assert "no queue or subscription uses the pool 'big'" in caplog.text
        caplog.clear()
        await reloading.change([{**A, "worker_pool_id": "big"}], pools)
        assert "no queue" not in caplog.text
        await reloading.change([A], pools)
        assert "no queue or subscription uses the pool 'big'" in caplog.text


@pytest.mark.parametrize("way", ["queue", "pool", "move"])
async def test_slots_in_use_count_when_a_queue_or_pool_is_removed_and_returns(reloading: Reloading, way: str) -> None:
    gone: dict[str, tuple[list[Entry], list[Entry]]] = {
        "queue": ([B], [{"id": "p", "workers": 2}]),
        "pool": ([A], []),
        "move": ([{**A, "worker_pool_id": "q"}], [{"id": "p", "workers": 2}, {"id": "q", "workers": 1}]),
    }
    at_first = [{**A, "worker_pool_id": "p"}], [{"id": "p", "workers": 2}]
    async with reloading.running(*at_first):
        await reloading.submit("a", 2)
        await reloading.at_gateway(2)
        await reloading.change(*gone[way])
        await reloading.change(*at_first)
        await reloading.submit("a", 10)
        await asyncio.gather(*(reloading.change(*at_first) for _ in range(3)))
        assert await reloading.store.hlen("a:claimed") == 2
        reloading.gateway.go.set()
        await reloading.answered(12)
    assert reloading.gateway.peak == 2
    assert reloading.gateway.seen == 12, "each was sent once"


async def test_the_limit_of_a_gate_changes_in_place(reloading: Reloading) -> None:
    def gated(limit: int, **more: Any) -> list[Entry]:
        return [{**A, "gate_type": LOCAL, "gate_params": {"limit": limit}, **more}]

    async with reloading.running(gated(2)):
        await reloading.submit("a", 9)
        await reloading.at_gateway(2)
        await reloading.change(gated(1, result_queue_name="other"))
        await reloading.change(gated(3))
        await reloading.at_gateway(3)
        reloading.gateway.go.set()
        await reloading.answered(9)
    assert reloading.gateway.peak == 3
    assert reloading.gateway.seen == 9


async def test_an_inner_gate_keeps_its_count_when_its_neighbour_changes(reloading: Reloading) -> None:
    def gated(limit: int) -> list[Entry]:
        inner = [{"gate_type": LOCAL, "gate_params": {"limit": one}} for one in (2, limit)]
        return [{**A, "gate_type": "composite", "gate_params": {"gates": inner}}]

    async with reloading.running(gated(5)):
        await reloading.submit("a", 6)
        await reloading.at_gateway(2)
        for limit in (6, 7, 8):
            await reloading.change(gated(limit))
        reloading.gateway.go.set()
        await reloading.answered(6)
    assert reloading.gateway.peak == 2


async def test_a_removed_queue_finishes_sent_requests_and_releases_the_others(reloading: Reloading) -> None:
    closed = {"gate_type": LOCAL, "gate_params": {"limit": 1, "gating_mode": "blocking"}}
    async with reloading.running([A], [{"id": "default", "workers": 4, **closed}]):
        await reloading.submit("a", 4)
        await reloading.at_gateway(1)
        await reloading.change([B])
        reloading.gateway.go.set()
        await reloading.answered(1)

        async def is_released() -> bool:
            return (await reloading.store.zcard("a"), await reloading.store.hlen("a:claimed")) == (3, 0)

        await wait_until_async(is_released, "the other requests to be pending again")


async def test_a_changed_redis_url_takes_effect_and_old_requests_finish_on_the_old_redis(
    store: Redis, valkey: Valkey, tmp_path: Path
) -> None:
    first = Redis.from_url(f"{valkey.url}/1", client_name="test", socket_timeout=60)
    reloading = Reloading(first, f"{valkey.url}/1", tmp_path / "config.json")
    async with reloading.running([A], TWO):
        await reloading.submit("a", 1)
        await reloading.at_gateway(1)
        await reloading.submit("a", 3, store)
        await reloading.change([A], TWO, url=valkey.url)
        await reloading.at_gateway(2)
        reloading.gateway.go.set()
        await reloading.answered(1)
        await reloading.answered(3, store)

        async def is_first_left() -> bool:
            clients: list[dict[str, str]] = await store.client_list()
            return {one["name"] for one in clients if one["db"] == "1"} <= {"test"}

        await wait_until_async(is_first_left, "the first connection to be closed")
    assert reloading.gateway.peak == 2, "one limit for both"
    await first.flushdb()
    await first.aclose()


@pytest.mark.parametrize(
    ("queues", "options", "setting"),
    [
        ([{**B, "gate_type": "unknown"}], "", "gate_type"),
        ([B], "?unknown=1", "REDIS_URL"),
    ],
)
async def test_an_invalid_configuration_changes_nothing(
    reloading: Reloading, valkey: Valkey, queues: list[Entry], options: str, setting: str
) -> None:
    one, two = ({**A, "gate_type": LOCAL, "gate_params": {"limit": limit}} for limit in (1, 2))
    async with reloading.running([one], TWO):
        more = [{"id": "default", "workers": 9}]
        with pytest.raises(InvalidSetting, match=setting):
            await reloading.change([two, *queues], more, url=f"{valkey.url}{options}")
        await reloading.submit("b", 1)
        await reloading.submit("a", 3)
        await reloading.at_gateway(1)
        reloading.gateway.go.set()
        await reloading.answered(3)
        assert await reloading.store.zcard("b") == 1, "not a queue of this poller"
    assert reloading.gateway.peak == 1, "the limit before"


async def test_many_reloads_leave_no_tasks_and_no_series_behind(reloading: Reloading) -> None:
    async with reloading.running([A]):
        await reloading.page()  # whose server has tasks, too
        await wait_until_async(lambda: len(asyncio.all_tasks()) > 10, "all tasks")
        before = len(asyncio.all_tasks())
        for number in range(20):
            gate = {"gate_type": LOCAL, "gate_params": {"limit": 2 + number}}
            await reloading.change(
                [A, {"queue_name": f"q{number}", "worker_pool_id": f"p{number}", **gate}],
                [{"id": f"p{number}", **gate}],
            )
        await reloading.change([A])
        await reloading.change([A])
        await wait_until_async(lambda: len(asyncio.all_tasks()) <= before, "the tasks to end")
        page = await reloading.page()
        assert '"a"' in page  # the remaining queue, which does not change any more
        gauges = [line for line in page.splitlines() if '"q1' in line or '"p1' in line]
        assert [
            line for line in gauges if not line.partition("{")[0].endswith(("_total", "_bucket", "_count", "_sum"))
        ] == []
