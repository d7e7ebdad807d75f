"""Several pollers use no more slots than one, by deadline, and killed ones are replaced."""

from __future__ import annotations

import json
import signal
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
import redis as blocking_redis

from handlers.demo.valkey import Valkey, find_valkey
from handlers.demo.view import WitnessLine, read_witness
from tests.servers.forked import COMMAND, ForkedChild, running_gateway
from tests.waiting import wait_until

SLOTS = 12
QUEUE, RESULTS = "request-sortedset", "result-list"


class Fleet:
    """One pool of `SLOTS` slots that several real pollers share; each has its own handler."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack = stack
        self._witness = folder / "witness.jsonl"
        self._settings = folder / "config.json"
        latency = ("--time-to-first-token", "0.2", "--capacity", "5000")
        self._gateway_url = stack.enter_context(running_gateway(*latency, "--witness", str(self._witness)))
        server = stack.enter_context(Valkey(find_valkey()))
        self.redis = blocking_redis.Redis.from_url(server.url, socket_timeout=60)
        stack.callback(self.redis.close)
        self.redis.set("dispatch-gate-budget", "1")
        self._variables = {
            "REDIS_URL": server.url,
            "IGW_BASE_URL": self._gateway_url,
            "CONFIG_FILE": str(self._settings),
            "GATE_REFRESH_SECONDS": "0.1",
            "LEASE_SECONDS": "6",
            "HEARTBEAT_SECONDS": "1",
            "METRICS_PORT": "0",
            "LOG_FORMAT": "text",
        }
        gate = {"gate_type": "redis", "gate_params": {"address": server.url}}
        pool = {"id": "shared", "workers": SLOTS, **gate}
        queue = {"queue_name": QUEUE, "worker_pool_id": "shared"}
        self._settings.write_text(json.dumps({"queues": [queue], "pools": [pool]}))

    def start(self, count: int) -> list[ForkedChild]:
        """Start that many more pollers."""
        return [
            self._stack.enter_context(ForkedChild("poller", [COMMAND, "poll"], self._variables)) for _ in range(count)
        ]

    def shared_by(self) -> int:
        return int(self.redis.zcard("{async-processor:pool:shared}:pollers"))

    def all_know(self, pollers: list[ForkedChild]) -> bool:
        """Whether each poller has registered with all others."""
        reported = [one.output().rpartition("pool shared")[2] for one in pollers]
        return all(f"pollers={len(pollers)}" in line for line in reported)

    def queue(self, first: int, count: int) -> None:
        """Queue all in one command, so none is served before all wait. Deadlines and ids have different orders."""
        members: dict[bytes, int] = {}
        for number in range(first, first + count):
            deadline = 1_999_900_000 + number * 37 % 1_000
            payload = {"prompt": "p", "user": str(deadline)}
            body = {"id": f"r{number}", "deadline": deadline, "payload": payload}
            members[msgspec.json.encode(body)] = deadline
        self.redis.zadd(QUEUE, members)

    def occupy_gateway(self) -> None:
        """Let a request from outside the queue keep the only slot, so that all others wait."""
        self._set_engine(capacity=1, time_to_first_token=3_600)
        address = urlsplit(self._gateway_url)
        holder = HTTPConnection(address.hostname or "", address.port or 0)
        self._stack.callback(holder.close)
        holder.request("POST", "/v1/completions", b'{"prompt": "p", "max_tokens": 1}')
        wait_until(lambda: self.gateway_state()["running"] == 1, "the slot to be taken")

    def free_gateway(self) -> None:
        """Let the waiting requests run."""
        self._set_engine(capacity=5_000, time_to_first_token=0.2)

    def gateway_state(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self._gateway_url}/simulate/state", timeout=60) as answer:
            return dict(msgspec.json.decode(answer.read()))

    def _set_engine(self, **options: float) -> None:
        body = msgspec.json.encode(options)
        with urllib.request.urlopen(f"{self._gateway_url}/simulate/engine", body, timeout=60):
            pass

    def results(self) -> int:
        return int(self.redis.llen(RESULTS))

    def witnessed(self) -> list[WitnessLine]:
        with self._witness.open("rb") as lines:
            return sorted(read_witness(lines), key=lambda line: line.started_at)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with ExitStack() as stack:
        yield Fleet(stack, tmp_path)


def most_at_once(lines: list[WitnessLine]) -> int:
    steps = sorted([(line.started_at, 1) for line in lines] + [(line.ended_at, -1) for line in lines])
    running = most = 0
    for _at, change in steps:
        running += change
        most = max(most, running)
    return most


@pytest.mark.parametrize("count", [2, 10])
def test_pollers_share_a_pool_and_keep_to_the_deadlines(fleet: Fleet, count: int) -> None:
    pollers = fleet.start(count)
    wait_until(lambda: fleet.all_know(pollers), "all pollers to know each other")
    fleet.occupy_gateway()
    fleet.queue(0, 100)
    wait_until(lambda: fleet.gateway_state()["waiting"] == SLOTS, "all slots to be used")
    fleet.free_gateway()
    wait_until(lambda: fleet.results() == 100, "all results")
    wait_until(lambda: len(fleet.witnessed()) == 100, "the gateway's witness")

    lines = fleet.witnessed()
    assert most_at_once(lines) == SLOTS, "together no more than one alone"
    deadlines = [int(line.key) for line in lines]
    places = {deadline: place for place, deadline in enumerate(sorted(deadlines))}
    late = [abs(places[deadline] - at) for at, deadline in enumerate(deadlines)]
    assert sorted(late)[80] <= 2 * SLOTS


def test_the_share_of_a_killed_poller_goes_to_the_others(fleet: Fleet) -> None:
    pollers = fleet.start(2)
    wait_until(lambda: fleet.all_know(pollers), "both to know each other")
    fleet.queue(0, 40)
    wait_until(lambda: fleet.results() >= 6, "both at work")
    pollers[0].process.send_signal(signal.SIGKILL)
    fleet.queue(1_000, 60)
    wait_until(lambda: fleet.results() >= 100, "every result, those of the crashed poller too", timeout_seconds=90)
    wait_until(lambda: fleet.shared_by() == 1, "the dead one's lease to end")
