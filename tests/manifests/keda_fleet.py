"""The pods of a rehearsal: real poller processes, started and stopped like an autoscaler does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.manifests.keda_rehearsal import Autoscaler, Redis
from tests.waiting import NotInTime, wait_until

COMMAND = [str(Path(sys.executable).parent / "async-processor"), "poll"]
STOP_SECONDS = 60.0
MOST_DECISIONS = 2_000


@dataclass
class Fleet:
    """Running pollers; those that were asked to stop may still be finishing."""

    environment: Mapping[str, str]
    logs: Path
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    stopping: list[subprocess.Popen[bytes]] = field(default_factory=list)
    started: int = 0
    log_of: dict[int, Path] = field(default_factory=dict)

    def _has_begun(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether a SIGTERM ends the process in order: before its first line, Python may have no handler yet."""
        return process.poll() is not None or self.log_of[process.pid].stat().st_size > 0

    def scale(self, replicas: int) -> None:
        """Start missing pollers; send SIGTERM to surplus ones, newest first."""
        while len(self.running) < replicas:
            self.started += 1
            path = self.logs / f"poller-{self.started}.log"
            with path.open("wb") as log:
                process = subprocess.Popen(COMMAND, env=dict(self.environment), stdout=log, stderr=subprocess.STDOUT)
            self.running.append(process)
            self.log_of[process.pid] = path
        while len(self.running) > replicas:
            leaver = self.running.pop()
            wait_until(partial(self._has_begun, leaver), "a line in the log of a poller, or its end")
            leaver.send_signal(signal.SIGTERM)
            self.stopping.append(leaver)

    def kill(self) -> None:
        """Kill all at once, like a failing node."""
        for process in self.running:
            process.kill()
            process.wait(timeout=STOP_SECONDS)
        self.running.clear()

    def close(self) -> list[int]:
        """Stop all; returns the exit codes of those that were asked to stop."""
        self.scale(0)
        codes = []
        for process in self.stopping:
            try:
                codes.append(process.wait(timeout=STOP_SECONDS))
            except subprocess.TimeoutExpired:
                process.kill()
                codes.append(process.wait())
        self.stopping.clear()
        return codes

    def read_logs(self) -> str:
        """The logs of the pollers, for a failure's message."""
        return "\n".join(f"--- {p.name}\n{p.read_text()[-2000:]}" for p in sorted(self.logs.glob("poller-*.log")))


@contextmanager
def fleet_of(environment: Mapping[str, str], logs: Path) -> Iterator[Fleet]:
    """A fleet that leaves no process behind."""
    fleet = Fleet(environment, logs)
    try:
        yield fleet
    finally:
        fleet.kill()
        fleet.close()


def rehearse(scaler: Autoscaler, fleet: Fleet, redis: Redis, *, until: Callable[[list[int]], bool]) -> list[int]:
    """Decide and scale until `until` accepts the number of replicas after each decision; returns these numbers.

    KEDA's clock advances by one polling interval with each decision. As long as work is left, the next decision waits
    for the lengths of the keys to change, however long the pollers take. Fails with their logs.
    """

    def measured() -> dict[str, float]:
        return {trigger.name: trigger.measure(redis) for trigger in scaler.scaling.triggers}

    def differs(before: dict[str, float]) -> bool:
        return measured() != before

    history: list[int] = []
    while len(history) < MOST_DECISIONS:
        values = measured()
        replicas = scaler.decide(values, len(history) * scaler.scaling.polling_seconds)
        fleet.scale(replicas)
        history.append(replicas)
        if until(history):
            return history
        if any(values.values()):
            what = f"the lengths of the keys to differ from {values}; replicas {history}"
            try:
                wait_until(partial(differs, values), what)
            except NotInTime as error:
                raise AssertionError(f"{error}\n{fleet.read_logs()}") from error
    raise AssertionError(f"replicas {history}\n{fleet.read_logs()}")


def inherited() -> dict[str, str]:
    """The environment variables that a process of the rehearsal inherits: paths of programs and packages."""
    kept = ("PATH", "HOME", "VIRTUAL_ENV", "LANG")
    root = str(Path(__file__).resolve().parents[2])
    return {name: os.environ[name] for name in kept if name in os.environ} | {"PYTHONPATH": root}
