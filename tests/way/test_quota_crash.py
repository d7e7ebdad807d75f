"""A killed poller's quota slots are free again when their leases expire."""

from __future__ import annotations

import json
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import msgspec
import redis as blocking_redis

from tests.bench.measuring import gateway, poller, valkey
from tests.waiting import wait_until

QUEUE, RESULTS, COUNTER = "request-sortedset", "result-list", "quota:userid:u"
LIMIT = 3


def test_slots_of_a_killed_poller_are_freed_and_the_limit_always_holds(tmp_path: Path) -> None:
    with ExitStack() as stack:
        up = stack.enter_context(gateway("--time-to-first-token", "3600"))
        server = stack.enter_context(valkey())
        store = blocking_redis.Redis.from_url(server.url, socket_timeout=60)
        stack.callback(store.close)
        params = {"address": server.url, "limit": LIMIT, "mode": "concurrency", "lease_seconds": 300}
        queue = {"queue_name": QUEUE, "gate_type": "redis-quota", "gate_params": params}
        settings = tmp_path / "config.json"
        settings.write_text(json.dumps({"queues": [queue]}))
        variables = {
            "REDIS_URL": server.url,
            "IGW_BASE_URL": up.url,
            "CONFIG_FILE": str(settings),
            "LEASE_SECONDS": "300",
            "HEARTBEAT_SECONDS": "1",
        }
        deadline = int(time.time()) + 600
        for number in range(20):
            body = {"id": f"r{number}", "deadline": deadline, "metadata": {"userid": "u"}, "payload": {}}
            store.zadd(QUEUE, {msgspec.json.encode(body): deadline})

        first = stack.enter_context(poller(variables))
        wait_until(lambda: int(store.get(COUNTER) or 0) == LIMIT, "all slots in use")
        first.child.process.send_signal(signal.SIGKILL)
        first.child.process.wait(60)
        wait_until(lambda: _state(up.url)["running"] == 0, "its calls to end")
        assert int(store.get(COUNTER) or 0) >= 1, "the crashed poller's slots are still counted"
        for leases in (f"{{{COUNTER}}}:held", f"{QUEUE}:claims-idx"):
            held: Any = store.zrange(leases, 0, -1)
            assert held
            store.zadd(leases, dict.fromkeys(held, 1))  # they end now, not in minutes
        urlopen(f"{up.url}/simulate/engine", b'{"time_to_first_token": 0.3}', timeout=60).close()

        stack.enter_context(poller(variables))
        wait_until(lambda: store.llen(RESULTS) >= 20, "every result", timeout_seconds=90)
        wait_until(lambda: store.get(COUNTER) is None, "nothing held any more")
        assert _state(up.url)["peak"] <= LIMIT


def _state(url: str) -> dict[str, Any]:
    with urlopen(f"{url}/simulate/state", timeout=60) as response:
        state: dict[str, Any] = msgspec.json.decode(response.read())
    return state
