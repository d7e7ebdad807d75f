"""Health of dependencies and state of gates, derived from real calls; no probes are sent."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from handlers.clock import SKEW_SECONDS, FollowedClock
from handlers.telemetry.logs import Logger

GATEWAY: Final = "gateway"
RESULTS: Final = "results"
MEMORY: Final = "memory"
GATES: Final = "gates"
DEPENDENCIES: Final = (GATEWAY, RESULTS, MEMORY, GATES)
"""The gateway, the result topic, the dedup store (Redis), and the sources of gates."""

_FAILURES: Final = 3
"""Consecutive failures before a dependency counts as failing; a single lost connection is normal."""


class Dependency:
    """Health of one dependency; `report` each call to it. `clock` returns monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._since = 0.0

    def report(self, *, has_failed: bool) -> None:
        if not has_failed:
            self._failures = 0
            return
        if not self._failures:
            self._since = self._clock()
        self._failures += 1

    @property
    def failing_seconds(self) -> float | None:
        """Seconds since the first of the latest failures; None while it works."""
        return self._clock() - self._since if self._failures >= _FAILURES else None


class Dependencies:
    """Dependencies of a process, by name."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[str, Dependency] = {}
        self._watched: dict[str, Callable[[], bool]] = {}
        self._missed_since: dict[str, float] = {}

    def add(self, name: str) -> Dependency:
        """The dependency `name` (one of `DEPENDENCIES`), to report calls to."""
        return self._known.setdefault(name, Dependency())

    def watch(self, name: str, is_there: Callable[[], bool]) -> None:
        """Add a dependency whose availability `is_there` returns."""
        self._watched[name] = is_there

    def names(self) -> list[str]:
        return [*self._known, *self._watched]

    def failing(self) -> dict[str, float]:
        """How long each failing dependency has failed, in seconds."""
        found = {name: one.failing_seconds for name, one in self._known.items()}
        found |= {name: self._missing_seconds(name, is_there) for name, is_there in self._watched.items()}
        return {name: seconds for name, seconds in found.items() if seconds is not None}

    def _missing_seconds(self, name: str, is_there: Callable[[], bool]) -> float | None:
        if is_there():
            self._missed_since.pop(name, None)
            return None
        now = self._clock()
        return now - self._missed_since.setdefault(name, now)


class GateState(msgspec.Struct, frozen=True):
    """Snapshot of a gate for metrics, logs and the status page.

    `value` is the reading, and `threshold` the value at which the gate closes; both are None for a gate without a
    metric. `on_missing` is the rule in force while the source is missing, and `why_missing` is the reason;
    else both are empty. `why_closed` is empty while the gate is open. `figures` are the gate's own gauges, by name.
    """

    gate_type: str
    budget: float = 1.0
    value: float | None = None
    threshold: float | None = None
    is_source_available: bool = True
    on_missing: str = ""
    why_missing: str = ""
    why_closed: str = ""
    label: str = ""
    figures: Mapping[str, float] = msgspec.field(default_factory=dict)
    inner: tuple[GateState, ...] = ()

    @property
    def closed_because(self) -> str:
        """Why the gate admits nothing now; empty while it is open."""
        return self.why_closed or ((self.reading or "its budget is 0") if self.budget <= 0 else "")

    @property
    def reading(self) -> str:
        """The value and the threshold in words; empty without a value."""
        if self.value is None:
            return ""
        return f"reads {self.value:.4g}" + ("" if self.threshold is None else f", closes at {self.threshold:.4g}")


class SkewWatch:
    """Logs when the difference to a peer's clock becomes large or small.

    `peer` is Redis or Pub/Sub.
    """

    def __init__(self, clock: FollowedClock, log: Logger, peer: str) -> None:
        self._clock = clock
        self._log = log
        self._peer = peer
        self._is_off = False

    def check(self) -> None:
        skew = self._clock.skew_seconds
        is_off = abs(skew) > SKEW_SECONDS
        if is_off == self._is_off:
            return
        self._is_off = is_off
        if is_off:
            fix = "synchronize the clock of this node (NTP); deadlines are compared with the peer's clock"
            self._log.warning("clock skew detected", peer=self._peer, ahead_seconds=round(skew, 1), fix=fix)
        else:
            self._log.info("clock skew ended", peer=self._peer)
