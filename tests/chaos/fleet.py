"""What chaos breaks: Valkey with an append-only file, the simulated gateway, pollers; all real processes."""

from __future__ import annotations

import json
import random
import re
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from handlers.demo.child import Child
from handlers.demo.valkey import find_valkey, free_port

_LISTENING = re.compile(r"listening on (http://\S+)")
POLLER_SETTINGS = {
    "LEASE_SECONDS": "1.5",
    "HEARTBEAT_SECONDS": "0.4",
    "RECLAIM_SECONDS": "0.3",
    "MAX_DEATHS": "1000",
    "WORKERS": "16",
    "SHUTDOWN_GRACE_SECONDS": "1",
    "METRICS_PORT": "0",
    "LOG_FORMAT": "json",
}


class Fleet:
    """A running set; a context manager. Faults are methods: each leaves as many pollers as there were."""

    def __init__(self, folder: Path, pollers: int) -> None:
        self._folder = folder
        self._parts = ExitStack()
        self._port = free_port()
        self.witness = folder / "witness.jsonl"
        self._valkey = self._start_valkey()
        command = [
            sys.executable,
            "-m",
            "handlers.demo.gateway",
            "--time-to-first-token",
            "0.25",
            "--capacity",
            "64",
        ]
        gateway = self._parts.enter_context(Child("gateway", [*command, "--witness", str(self.witness)]))
        self._gateway_url = gateway.wait_for(
            lambda output: found.group(1) if (found := _LISTENING.search(output)) else None
        )
        self._pollers = [self._start_poller() for _ in range(pollers)]

    @property
    def redis_url(self) -> str:
        return f"redis://127.0.0.1:{self._port}"

    def _start_valkey(self) -> Child:
        options = ("--save", "", "--appendonly", "yes", "--dir", str(self._folder), "--bind", "127.0.0.1")
        child = Child("valkey", [find_valkey(), "--port", str(self._port), *options])
        child.wait_for(lambda output: output if "Ready to accept connections" in output else None)
        return child

    def _start_poller(self) -> Child:
        command = [str(Path(sys.executable).parent / "async-processor"), "poll"]
        where = {"REDIS_URL": self.redis_url, "IGW_BASE_URL": self._gateway_url}
        return Child("poller", command, {**POLLER_SETTINGS, **where})

    def end_poller(self, word: signal.Signals, chance: random.Random) -> None:
        """SIGKILL or SIGTERM one, and start another in its place."""
        at = chance.randrange(len(self._pollers))
        ended = self._pollers[at]
        ended.process.send_signal(word)
        ended.process.wait(10)
        ended.stop()
        self._pollers[at] = self._start_poller()

    def stall_poller(self, chance: random.Random) -> Child:
        """SIGSTOP one; the caller wakes it."""
        stalled = chance.choice(self._pollers)
        stalled.process.send_signal(signal.SIGSTOP)
        return stalled

    def kill_valkey(self) -> None:
        """SIGKILL it and start it again from its file."""
        self._valkey.process.kill()
        self._valkey.process.wait()
        self._valkey.stop()
        self._valkey = self._start_valkey()

    def answered(self) -> dict[str, int]:
        """Complete answers of 200 for each id, as the gateway saw them."""
        counts: dict[str, int] = {}
        for text in self.witness.read_text().splitlines():
            line = json.loads(text)
            if line["status"] == 200:
                counts[line["key"]] = counts.get(line["key"], 0) + 1
        return counts

    def executions(self) -> int:
        """Requests that reached the gateway, also those whose client died before the answer."""
        return len(self.witness.read_text().splitlines())

    def stop(self) -> None:
        """End all."""
        for poller in self._pollers:
            poller.process.send_signal(signal.SIGCONT)
            poller.stop()
        self._parts.close()
        self._valkey.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()
