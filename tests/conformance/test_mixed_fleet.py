"""Ours and another processor on one queue, both killed now and then: no result lost, none doubled, nothing left."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis

from handlers.demo.child import Child
from handlers.demo.valkey import Valkey, find_valkey
from tests.waiting import elapse, wait_until

COUNT = 900
QUEUE, RESULTS = "request-sortedset", "result-list"
DEADLINE = int(time.time()) + 86_400
COMMAND = str(Path(sys.executable).parent / "async-processor")
SECOND = str(Path(__file__).with_name("second_consumer.py"))
Start = Callable[[], Child]


class Fleet:
    """Two of ours, two of theirs, one gateway that fails now and then."""

    def __init__(self, parts: ExitStack) -> None:
        self.url = parts.enter_context(Valkey(find_valkey())).url
        command = [sys.executable, "-m", "handlers.demo.gateway", "--host", "127.0.0.1", "--port", "0"]
        command += ["--time-to-first-token", "0.05", "--fault", "503=0.1"]
        gateway = parts.enter_context(Child("gateway", command))
        self._gateway_url = gateway.wait_for(_listening)
        self.kinds: list[Start] = [self._ours, self._ours, self._theirs, self._theirs]
        self.processes = [start() for start in self.kinds]

    def _ours(self) -> Child:
        settings = {
            "LEASE_SECONDS": "1.5",
            "HEARTBEAT_SECONDS": "0.4",
            "RECLAIM_SECONDS": "0.3",
            "WORKERS": "12",
        }
        where = {
            "REDIS_URL": self.url,
            "IGW_BASE_URL": self._gateway_url,
            "METRICS_PORT": "0",
            "MAX_DEATHS": "100",
        }
        return Child("poller", [COMMAND, "poll"], {**settings, **where})

    def _theirs(self) -> Child:
        return Child("second consumer", [sys.executable, SECOND, self.url, QUEUE, self._gateway_url])

    def kill(self, at: int) -> None:
        """SIGKILL one, and start its like."""
        ended = self.processes[at % len(self.processes)]
        ended.process.send_signal(signal.SIGKILL)
        ended.process.wait(10)
        ended.stop()
        self.processes[at % len(self.processes)] = self.kinds[at % len(self.kinds)]()

    def stop(self) -> None:
        for one in self.processes:
            one.process.kill()
            one.stop()


def _listening(output: str) -> str | None:
    _, found, rest = output.partition("listening on ")
    return rest.split()[0] if found and rest.split() else None


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with ExitStack() as parts:
        running = Fleet(parts)
        parts.callback(running.stop)
        yield running


def member(number: int) -> bytes:
    """Bare bodies and envelopes, with and without a token, in turn."""
    body = {"id": f"m{number}", "deadline": DEADLINE, "payload": {"prompt": "x", "max_tokens": 1}}
    internal: dict[str, object] = {"request_token": f"t-{number}"} if number % 3 == 1 else {"retry_count": 0}
    whole = body if number % 3 == 0 else {"internal": internal, "request_kind": "redis", "data": body}
    return json.dumps(whole).encode()


@pytest.mark.timeout(240)
def test_a_mixed_fleet_answers_every_request_once(fleet: Fleet) -> None:
    with redis.Redis.from_url(fleet.url) as store:
        for begin in range(0, COUNT, 100):
            store.zadd(QUEUE, {member(number): DEADLINE for number in range(begin, begin + 100)})
            wait_until(lambda: store.hlen(f"{QUEUE}:claimed") > 6, 60, "both at work")
            elapse(0.2, "kills meet requests at any point of their way")
            fleet.kill(begin // 100)
        wait_until(lambda: store.llen(RESULTS) >= COUNT, 120, "all results")
        held = (QUEUE, f"{QUEUE}:claimed", f"{QUEUE}:claim-owners", f"{QUEUE}:claims-idx", "retry-sortedset")
        wait_until(lambda: not store.exists(*held), 30, "nothing is held")
        results = [json.loads(text) for text in store.lrange(RESULTS, 0, -1)]
    assert Counter(result["id"] for result in results) == Counter(f"m{number}" for number in range(COUNT))
    assert {result["status_code"] for result in results} == {200}
    tokens = {result["id"]: result.get("request_token", "") for result in results}
    assert all(tokens[f"m{n}"] == (f"t-{n}" if n % 3 == 1 else "") for n in range(COUNT))
