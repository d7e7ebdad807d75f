"""The processes that chaos breaks: Valkey with an append-only file, gateway, handlers, pollers.

Pollers reach Valkey and the dispatch handlers, handlers reach the gateway, and pushes reach their doors through
proxies of the harness. The harness itself connects directly.
"""

from __future__ import annotations

import json
import re
import signal
import threading
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Self

from handlers.demo.servers import Child, free_port
from handlers.demo.stack import ready_port
from handlers.demo.valkey import find_valkey
from tests.chaos.proxy import Proxy
from tests.servers.forked import COMMAND, ForkedChild, running_gateway
from tests.waiting import wait_until

_REFUSED = re.compile(r'"outcome":"lost"')
LEASE_SECONDS, SCAN_SECONDS = 1.5, 0.3
SETTINGS = {
    "LEASE_SECONDS": str(LEASE_SECONDS),
    "HEARTBEAT_SECONDS": "0.4",
    "RECLAIM_SECONDS": str(SCAN_SECONDS),
    "MAX_DEATHS": "1000",
    "WORKERS": "16",
    "SHUTDOWN_GRACE_SECONDS": "1",
    "METRICS_PORT": "0",
    "PORT": "0",
    "LOG_FORMAT": "json",
}
DEFAULT_LEASES = {
    name: value
    for name, value in SETTINGS.items()
    if name not in ("LEASE_SECONDS", "HEARTBEAT_SECONDS", "RECLAIM_SECONDS")
}
"""The same settings with the product's default leases."""
PUSH_SETTINGS = {
    "PROJECT_ID": "chaos-project",
    "RESULT_TOPIC_ID": "results",
    "PUSH_AUTH": "none",
    "MIN_REDELIVERY_SECONDS": "0",
    "ACK_DEADLINE_SECONDS": "60",
}
ANSWER_SECONDS = 0.2
_REPLACING = 8
"""Processes that are replaced at a time."""
LINKS = ("store", "handlers", "gateway", "pushes")
"""The paths that have a proxy."""


class Scene:
    """Valkey with its file and the gateway with its witness log; a context manager."""

    def __init__(self, folder: Path, answer_seconds: float = ANSWER_SECONDS) -> None:
        self._folder = folder
        self._answer_seconds = answer_seconds
        self._parts = ExitStack()
        self._port = free_port()
        self.witness = folder / "witness.jsonl"
        self.valkey = self._start_valkey()
        self.gateway_url = self._start_gateway()

    @property
    def redis_url(self) -> str:
        """The URL without a proxy."""
        return f"redis://127.0.0.1:{self._port}"

    def _start_valkey(self) -> Child:
        options = ("--save", "", "--appendonly", "yes", "--dir", str(self._folder), "--bind", "127.0.0.1")
        child = Child("valkey", [find_valkey(), "--port", str(self._port), *options])
        child.wait_for(lambda output: output if "Ready to accept connections" in output else None, 60)
        return child

    def _start_gateway(self) -> str:
        latency = ("--time-to-first-token", str(self._answer_seconds), "--capacity", "128")
        return self._parts.enter_context(running_gateway(*latency, "--witness", str(self.witness)))

    def kill_valkey(self) -> None:
        """Kill Valkey with SIGKILL and start it again from its file."""
        self.valkey.process.kill()
        self.valkey.process.wait()
        self.valkey.stop()
        self.valkey = self._start_valkey()

    def gateway(self, path: str, **values: float) -> dict[str, float]:
        """A control or state page of the simulated gateway."""
        body = json.dumps({name.removeprefix("status_"): value for name, value in values.items()}).encode()
        data = None if path == "state" else body
        with urllib.request.urlopen(f"{self.gateway_url}/simulate/{path}", data, timeout=60) as answer:
            found: dict[str, float] = json.load(answer)
            return found

    def in_flight(self) -> int:
        """The number of requests in the gateway now."""
        state = self.gateway("state")
        return int(state["running"]) + int(state["waiting"])

    def stop(self) -> None:
        """Stop all processes."""
        self._parts.close()
        self.valkey.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()


class Fleet(Scene):
    """Adds handlers of both doors and pollers; `publish_host` takes the push door's results.

    A process that ends is replaced in the background. `pollers`, `dispatchers` and `pushers` contain the ready ones.
    """

    def __init__(
        self,
        folder: Path,
        publish_host: str,
        *,
        pollers: int,
        handlers: int,
        settings: Mapping[str, str] = SETTINGS,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        super().__init__(folder, answer_seconds)
        self._settings = settings
        self._publish_host = publish_host
        self.refused = 0
        self._lock = threading.Lock()
        self._size = pollers
        self._replacing: set[Future[None]] = set()
        self._threads = self._parts.enter_context(ThreadPoolExecutor(_REPLACING, "replacing"))
        gateway = self.gateway_url.removeprefix("http://").rstrip("/").split(":")
        backends = {"store": [("127.0.0.1", self._port)], "gateway": [(gateway[0], int(gateway[1]))]}
        self.proxies = {link: self._parts.enter_context(Proxy(*backends.get(link, []))) for link in LINKS}
        self.dispatchers: list[tuple[Child, int]] = []
        self.pushers: list[tuple[Child, int]] = []
        self.pollers: list[Child] = []
        for _ in range(handlers):
            self._replace(partial(self._add_handler, "dispatch"))
        for _ in range(2):
            self._replace(partial(self._add_handler, "pubsub_push"))
        for _ in range(pollers):
            self._replace(self._add_poller)
        self.settle()

    @property
    def push_url(self) -> str:
        """The URLs of the push doors, in turn."""
        return f"http://127.0.0.1:{self.proxies['pushes'].port}/push"

    def _replace(self, work: Callable[[], None]) -> None:
        future = self._threads.submit(work)
        self._replacing.add(future)
        future.add_done_callback(self._replaced)

    def _replaced(self, done: Future[None]) -> None:
        if not done.exception():  # `settle` raises it
            self._replacing.discard(done)

    def settle(self) -> None:
        """Wait for all processes that are starting. Raises the error of one that failed."""
        for future in list(self._replacing):
            future.result()

    def _add_handler(self, target: str) -> None:
        own = {"IGW_BASE_URL": f"http://127.0.0.1:{self.proxies['gateway'].port}", **self._settings}
        if target == "pubsub_push":
            # The dedup store is reached directly; other tests cover its failures.
            own |= {
                **PUSH_SETTINGS,
                "PUBSUB_EMULATOR_HOST": self._publish_host,
                "DEDUPE_REDIS_URL": self.redis_url,
            }
        child = ForkedChild(target, [COMMAND, "serve", "--target", target], own)
        port = int(child.wait_for(ready_port, 60))
        with self._lock:
            self._group(target).append((child, port))
            self._set_backends()

    def _add_poller(self) -> None:
        where = {
            "REDIS_URL": f"redis://127.0.0.1:{self.proxies['store'].port}",
            "HANDLER_URL": f"http://127.0.0.1:{self.proxies['handlers'].port}",
        }
        child = ForkedChild("poller", [COMMAND, "poll"], {**self._settings, **where})
        with self._lock:
            self.pollers.append(child)

    def _group(self, target: str) -> list[tuple[Child, int]]:
        return self.dispatchers if target == "dispatch" else self.pushers

    def _set_backends(self) -> None:
        self.proxies["handlers"].backends = [("127.0.0.1", port) for _, port in self.dispatchers]
        self.proxies["pushes"].backends = [("127.0.0.1", port) for _, port in self.pushers]

    def end_poller(self, at: int, word: signal.Signals) -> None:
        """End a poller with SIGKILL or SIGTERM, and start another one."""
        wait_until(lambda: self.pollers, "a poller to end")
        with self._lock:
            ended = self.pollers.pop(at % len(self.pollers))
        _tell(ended, word)
        self._replace(partial(self._succeed, ended, self._add_poller))

    def end_handler(self, at: int, word: signal.Signals) -> None:
        """The same for a handler of either door."""
        target = ("dispatch", "pubsub_push")[at % 2]
        wait_until(lambda: self._group(target), "a handler to end")
        with self._lock:
            group = self._group(target)
            ended, _ = group.pop(at // 2 % len(group))
            self._set_backends()
        _tell(ended, word)
        self._replace(partial(self._succeed, ended, partial(self._add_handler, target)))

    def _succeed(self, ended: Child, follow: Callable[[], None]) -> None:
        self._ended(ended)
        follow()

    def _ended(self, child: Child) -> None:
        child.process.wait(60)
        refused = len(_REFUSED.findall(child.output()))
        child.stop()
        with self._lock:
            self.refused += refused

    def scale_to_zero(self, word: signal.Signals = signal.SIGTERM) -> None:
        """End all pollers, with SIGTERM or SIGKILL."""
        self.settle()
        ended, self.pollers = self.pollers, []
        for poller in ended:
            _tell(poller, word)
        for poller in ended:
            self._ended(poller)

    def scale_up(self) -> None:
        """Start as many pollers as at first."""
        for _ in range(self._size - len(self.pollers)):
            self._add_poller()

    def stop(self) -> None:
        """Stop all processes."""
        self.scale_to_zero()
        for child, _ in [*self.dispatchers, *self.pushers]:
            _tell(child, signal.SIGKILL)
            child.stop()
        super().stop()


def _tell(child: Child, word: signal.Signals) -> None:
    """Send a signal, also to a stopped process."""
    child.process.send_signal(word)
    child.process.send_signal(signal.SIGCONT)
