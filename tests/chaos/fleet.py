"""What chaos breaks, all real processes: Valkey with an append-only file, gateway, handlers behind both doors, pollers.

Pollers reach Valkey and the dispatch handlers through proxies of the harness; the harness itself goes straight.
"""

from __future__ import annotations

import json
import re
import signal
import sys
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from handlers.demo.child import Child
from handlers.demo.stack import ready_port
from handlers.demo.valkey import find_valkey, free_port
from tests.chaos.proxy import Proxy

_LISTENING = re.compile(r"listening on (http://\S+)")
_REFUSED = re.compile(r'"event":"(?:settlement refused, the lease was lost|lease lost)"')
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
PUSH_SETTINGS = {
    "PROJECT_ID": "chaos-project",
    "RESULT_TOPIC_ID": "results",
    "PUSH_AUTH": "none",
    "MIN_REDELIVERY_SECONDS": "0",
    "ACK_DEADLINE_SECONDS": "60",
}
ANSWER_SECONDS = 0.2
COMMAND = str(Path(sys.executable).parent / "async-processor")
Group = list[Child]


class Scene:
    """Valkey with its file, and the gateway with its witness; a context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parts = ExitStack()
        self._port = free_port()
        self.witness = folder / "witness.jsonl"
        self.valkey = self._start_valkey()
        self.gateway_url = self._start_gateway()

    @property
    def redis_url(self) -> str:
        """Straight to the server."""
        return f"redis://127.0.0.1:{self._port}"

    def _start_valkey(self) -> Child:
        options = ("--save", "", "--appendonly", "yes", "--dir", str(self._folder), "--bind", "127.0.0.1")
        child = Child("valkey", [find_valkey(), "--port", str(self._port), *options])
        child.wait_for(lambda output: output if "Ready to accept connections" in output else None, 60)
        return child

    def _start_gateway(self) -> str:
        command = [sys.executable, "-m", "handlers.demo.gateway", "--host", "127.0.0.1", "--port", "0"]
        command += ["--time-to-first-token", str(ANSWER_SECONDS), "--capacity", "128"]
        gateway = self._parts.enter_context(Child("gateway", [*command, "--witness", str(self.witness)]))
        return gateway.wait_for(
            lambda output: found.group(1) if (found := _LISTENING.search(output)) else None, 60
        )

    def kill_valkey(self) -> None:
        """SIGKILL it and start it again from its file."""
        self.valkey.process.kill()
        self.valkey.process.wait()
        self.valkey.stop()
        self.valkey = self._start_valkey()

    def gateway(self, path: str, **values: float) -> dict[str, float]:
        """A control or state page of the simulated gateway."""
        body = json.dumps({name.removeprefix("status_"): value for name, value in values.items()}).encode()
        data = None if path == "state" else body
        with urllib.request.urlopen(f"{self.gateway_url}/simulate/{path}", data, timeout=10) as answer:
            found: dict[str, float] = json.load(answer)
            return found

    def in_flight(self) -> int:
        """Requests that the gateway works on now."""
        state = self.gateway("state")
        return int(state["running"]) + int(state["waiting"])

    def stop(self) -> None:
        """End all."""
        self._parts.close()
        self.valkey.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()


class Fleet(Scene):
    """Handlers of both doors and pollers as well. `publish_host` takes the push door's results."""

    def __init__(
        self,
        folder: Path,
        publish_host: str,
        *,
        pollers: int,
        handlers: int,
        settings: Mapping[str, str] = SETTINGS,
    ) -> None:
        super().__init__(folder)
        self._settings = settings
        self.refused = 0
        self.redis_proxy = self._parts.enter_context(Proxy(("127.0.0.1", self._port)))
        self._publish_host = publish_host
        self.dispatchers = [self._start_handler("dispatch") for _ in range(handlers)]
        self.pushers = [self._start_handler("pubsub_push") for _ in range(2)]
        self.handler_proxy = self._parts.enter_context(Proxy())
        self.push_proxy = self._parts.enter_context(Proxy())
        self._set_backends()
        self.pollers: Group = [self.start_poller() for _ in range(pollers)]

    @property
    def push_url(self) -> str:
        """The push doors, in turn."""
        return f"http://127.0.0.1:{self.push_proxy.port}/push"

    def _start_handler(self, target: str) -> tuple[Child, int]:
        own = {"IGW_BASE_URL": self.gateway_url, **self._settings}
        if target == "pubsub_push":
            # The memory is asked straight: what happens without it is tested where it is.
            own |= {
                **PUSH_SETTINGS,
                "PUBSUB_EMULATOR_HOST": self._publish_host,
                "DEDUPE_REDIS_URL": self.redis_url,
            }
        child = Child(target, [COMMAND, "serve", "--target", target], own)
        return child, int(child.wait_for(ready_port, 60))

    def start_poller(self) -> Child:
        """One more; it needs a moment to be ready."""
        where = {
            "REDIS_URL": f"redis://127.0.0.1:{self.redis_proxy.port}",
            "HANDLER_URL": f"http://127.0.0.1:{self.handler_proxy.port}",
        }
        return Child("poller", [COMMAND, "poll"], {**self._settings, **where})

    def _set_backends(self) -> None:
        self.handler_proxy.backends = [("127.0.0.1", port) for _, port in self.dispatchers]
        self.push_proxy.backends = [("127.0.0.1", port) for _, port in self.pushers]

    def end_poller(self, at: int, word: signal.Signals) -> None:
        """SIGKILL or SIGTERM, and another in its place."""
        ended = self.pollers[at % len(self.pollers)]
        self._end(ended, word)
        self.pollers[at % len(self.pollers)] = self.start_poller()

    def end_handler(self, at: int, word: signal.Signals) -> None:
        """The same for a handler of either door."""
        groups = [(self.dispatchers, "dispatch"), (self.pushers, "pubsub_push")]
        group, target = groups[at % 2]
        self._end(group[at // 2 % len(group)][0], word)
        group[at // 2 % len(group)] = self._start_handler(target)
        self._set_backends()

    def _end(self, child: Child, word: signal.Signals) -> None:
        child.process.send_signal(word)
        child.process.send_signal(signal.SIGCONT)
        child.process.wait(30)
        self._count(child)
        child.stop()

    def _count(self, child: Child) -> None:
        self.refused += len(_REFUSED.findall(child.output()))

    def scale_to_zero(self) -> int:
        """Every poller is told to end; returns how many there were."""
        ended, self.pollers = self.pollers, []
        for poller in ended:
            poller.process.send_signal(signal.SIGTERM)
        for poller in ended:
            poller.process.wait(30)
            self._count(poller)
            poller.stop()
        return len(ended)

    def stop(self) -> None:
        """End all."""
        self.scale_to_zero()
        for child, _ in [*self.dispatchers, *self.pushers]:
            child.process.send_signal(signal.SIGCONT)
            child.process.kill()
            child.stop()
        super().stop()
