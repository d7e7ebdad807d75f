"""A poller whose Redis and gateway can fail while it runs: real processes and a proxy."""

from __future__ import annotations

import json
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import psutil
import redis

from handlers.demo.servers import Child, free_port
from handlers.demo.valkey import find_valkey
from tests.chaos.proxy import Proxy
from tests.servers.forked import COMMAND, ForkedChild, running_gateway
from tests.waiting import wait_until

QUEUE, RESULTS, RETRIES = "request-sortedset", "result-list", "retry-sortedset"
WORKERS = 16
DEADLINE = 1_999_999_999
_SETTINGS = {
    "LEASE_SECONDS": "6",
    "HEARTBEAT_SECONDS": "0.8",
    "RECLAIM_SECONDS": "0.5",
    "WORKERS": str(WORKERS),
    "REQUEST_TIMEOUT_SECONDS": "3",
    "SHUTDOWN_GRACE_SECONDS": "1",
    "LOG_FORMAT": "json",
}


class Breakable:
    """Valkey, proxy, gateway, and a poller with its own handler; a context manager.

    `variables` are further settings of the poller.
    """

    def __init__(self, variables: Mapping[str, str] | None = None) -> None:
        self._variables = variables or {}
        self._parts = ExitStack()
        self._folder = Path(tempfile.mkdtemp(prefix="breakable-"))
        self._parts.callback(shutil.rmtree, self._folder, ignore_errors=True)
        self.redis_port, self._pages_port = free_port(), free_port()
        self._asked = 0
        try:
            self._start()
        except BaseException:
            self._parts.close()
            raise

    def _start(self) -> None:
        self._parts.callback(self._stop_redis)
        self.start_redis()
        self.proxy = self._parts.enter_context(Proxy(("127.0.0.1", self.redis_port)))
        gateway = running_gateway("--time-to-first-token", "0.1")
        self._gateway_url = self._parts.enter_context(gateway)
        where = {
            "REDIS_URL": f"redis://127.0.0.1:{self.proxy.port}",
            "IGW_BASE_URL": self._gateway_url,
            "METRICS_PORT": str(self._pages_port),
        }
        self.poller = self._parts.enter_context(
            ForkedChild("poller", [COMMAND, "poll"], {**_SETTINGS, **where, **self._variables})
        )
        self.poller.wait_for(lambda output: output if "polling" in output else None)
        self._process = psutil.Process(self.poller.process.pid)
        self.store: redis.Redis = self._parts.enter_context(redis.Redis(port=self.redis_port, socket_timeout=60))

    def start_redis(self, *options: str, is_ready: str = "Ready to accept connections") -> None:
        """Start it with the data of its append-only file; returns when `is_ready` is in its log."""
        given = ("--save", "", "--appendonly", "yes", "--dir", str(self._folder), "--bind", "127.0.0.1")
        command = [find_valkey(), "--port", str(self.redis_port), *given, *options]
        self._redis = Child("valkey", command)
        self._redis.wait_for(lambda output: output if is_ready in output else None)

    @property
    def redis_url(self) -> str:
        """The URL without the proxy."""
        return f"redis://127.0.0.1:{self.redis_port}"

    def follow(self, promoted: redis.Redis, port: int) -> None:
        """Use the server on `port` from now on, for the poller and the test."""
        self.proxy.backends = [("127.0.0.1", port)]
        self.proxy.cut()
        self.store = promoted

    def kill_redis(self) -> None:
        """SIGKILL."""
        self._redis.process.kill()
        self._redis.process.wait()
        self._redis.stop()

    def _stop_redis(self) -> None:
        self._redis.stop()  # the last of those that were started

    def queue(self, count: int) -> list[str]:
        """Submit `count` requests; returns their ids."""
        ids = [f"r{number}" for number in range(self._asked, self._asked + count)]
        self._asked += count
        bodies = {json.dumps({"id": one, "payload": {}, "deadline": DEADLINE}): DEADLINE for one in ids}
        self.store.zadd(QUEUE, bodies)
        return ids

    def wait_for_results(self, ids: list[str], timeout_seconds: float = 60) -> None:
        """Wait until all have one result with a 200, and no keys are left."""
        wait_until(
            lambda: self._runs() and self.store.llen(RESULTS) >= len(ids),
            f"{len(ids)} results, all there",
            timeout_seconds=timeout_seconds,
        )
        wait_until(lambda: self.left() == 0, "nothing left of the finished requests")
        results = [json.loads(text) for text in self.store.lrange(RESULTS, 0, -1)]
        self.store.delete(RESULTS)
        assert sorted(one["id"] for one in results) == sorted(ids), "each once"
        assert {one.get("status_code") for one in results} == {200}

    def _runs(self) -> bool:
        code = self.poller.process.poll()
        assert code is None, f"the poller ended with {code}: {self.poller.output()[-3_000:]}"
        return True

    def left(self) -> int:
        """Requests that are pending, claimed, or wait for a retry."""
        return int(self.store.zcard(QUEUE) + self.store.hlen(f"{QUEUE}:claimed") + self.store.zcard(RETRIES))

    def in_flight(self) -> int:
        """Claims that are held."""
        return int(self.store.hlen(f"{QUEUE}:claimed"))

    def ready(self) -> tuple[int, str]:
        """The response of the poller's readiness page."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._pages_port}/readyz", timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def wait_until_ready(self) -> None:
        """Wait until the readiness page reports 200."""
        wait_until(lambda: self.ready()[0] == 200, "ready again, without a restart")

    @property
    def pid(self) -> int:
        """The poller's process."""
        return int(self._process.pid)

    def connections(self) -> int:
        """The poller's open files and sockets."""
        return int(self._process.num_fds())

    def set_faults(self, **rates: float) -> None:
        """Set the shares of requests that the gateway fails; `status_503` is a status."""
        body = json.dumps({name.removeprefix("status_"): rate for name, rate in rates.items()}).encode()
        urllib.request.urlopen(f"{self._gateway_url}/simulate/faults", body, timeout=60).close()

    def gateway_state(self) -> dict[str, Any]:
        """The gateway's report about its state."""
        with urllib.request.urlopen(f"{self._gateway_url}/simulate/state", timeout=60) as answer:
            return dict(json.load(answer))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._parts.close()
