"""Start the measured processes, and read their figures from the operating system."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from handlers.demo.servers import Child
from handlers.demo.valkey import Valkey, find_valkey

COMMAND = str(Path(sys.executable).parent / "async-processor")
_READY = re.compile(r"ready target=\w+ port=(\d+)")
_LISTENING = re.compile(r"listening on (http://\S+)")
_SERVING = re.compile(r"running on (http://[\d.:]+)")


@dataclass(frozen=True, slots=True)
class Started:
    """A running process: its URL, and the seconds from its start to readiness."""

    child: Child
    url: str
    ready_seconds: float

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(self.child.process.pid)

    def cpu_seconds(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def rss_mb(self) -> float:
        return float(self.process.memory_info().rss) / 1_000_000


@contextlib.contextmanager
def started(name: str, command: list[str], variables: dict[str, str], pattern: re.Pattern[str]) -> Iterator[Started]:
    """Start a process and wait for a line that matches."""
    began = time.perf_counter()
    with Child(name, command, {"LOG_FORMAT": "text", **variables}) as child:
        found = child.wait_for(lambda output: match[1] if (match := pattern.search(output)) else None)
        seconds = time.perf_counter() - began
        yield Started(child, found if found.startswith("http") else f"http://127.0.0.1:{found}", seconds)


@contextlib.contextmanager
def gateway(*arguments: str) -> Iterator[Started]:
    """The simulated gateway."""
    command = [sys.executable, "-m", "handlers.demo.gateway", "--capacity", "5000", *arguments]
    with started("gateway", command, {}, _LISTENING) as up:
        yield up


@contextlib.contextmanager
def handler(target: str, variables: dict[str, str]) -> Iterator[Started]:
    """One door under uvicorn, as it is deployed."""
    # With its metrics page enabled, so that the figures are those of a monitored handler.
    given = {"PORT": "0", "HOST": "127.0.0.1", "METRICS_TOKEN": "the-bench-counts-too", **variables}
    with started(target, [COMMAND, "serve", "--target", target], given, _READY) as up:
        yield up


@contextlib.contextmanager
def poller(variables: dict[str, str]) -> Iterator[Started]:
    """The poller."""
    with started("poller", [COMMAND, "poll"], {"METRICS_PORT": "0", **variables}, re.compile("(polling)")) as up:
        yield up


@contextlib.contextmanager
def reference_loop(gateway_url: str) -> Iterator[Started]:
    """The bare forwarder."""
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "tests.bench.reference_loop:app",
        "--port",
        "0",
        "--no-access-log",
    ]
    command += ["--loop", "uvloop", "--http", "httptools"]
    with started("reference loop", command, {"BENCH_GATEWAY": gateway_url}, _SERVING) as up:
        yield up


@contextlib.contextmanager
def valkey() -> Iterator[Valkey]:
    """A server for the queues."""
    with Valkey(find_valkey()) as server:
        yield server
