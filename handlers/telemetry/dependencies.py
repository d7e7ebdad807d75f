"""What a handler needs beside itself, as its own calls found it last. Nobody is asked for this: it costs no call."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from handlers.clock import SKEW_SECONDS, FollowedClock
from handlers.telemetry.logs import Logger

GATEWAY: Final = "gateway"
RESULTS: Final = "results"
MEMORY: Final = "memory"
GATES: Final = "gates"
DEPENDENCIES: Final = (GATEWAY, RESULTS, MEMORY, GATES)
"""Where requests are sent, the topic that takes the results, the Redis that knows deliveries, what gates ask."""

_FAILURES: Final = 3
"""In a row, before it counts as failing: one lost connection is no news."""


class Dependency:
    """One of them; whoever calls it tells what became of each call. `clock` gives seconds that never go back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._since = 0.0

    def tell(self, *, has_failed: bool) -> None:
        """A call has ended."""
        if not has_failed:
            self._failures = 0
            return
        if not self._failures:
            self._since = self._clock()
        self._failures += 1

    @property
    def failing_seconds(self) -> float | None:
        """For how long it has failed, without a success in between; None while it works."""
        return self._clock() - self._since if self._failures >= _FAILURES else None


class Dependencies:
    """Those that a process has, by name."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[str, Dependency] = {}
        self._watched: dict[str, Callable[[], bool]] = {}
        self._missed_since: dict[str, float] = {}

    def add(self, name: str) -> Dependency:
        """One of `DEPENDENCIES`."""
        return self._known.setdefault(name, Dependency())

    def watch(self, name: str, is_there: Callable[[], bool]) -> None:
        """One of `DEPENDENCIES` that knows itself whether it is there; it fails from the first look that misses it."""
        self._watched[name] = is_there

    def names(self) -> list[str]:
        """Of all that were added."""
        return [*self._known, *self._watched]

    def failing(self) -> dict[str, float]:
        """Seconds for which each has failed that fails now."""
        found = {name: one.failing_seconds for name, one in self._known.items()}
        found |= {name: self._missing_seconds(name, is_there) for name, is_there in self._watched.items()}
        return {name: seconds for name, seconds in found.items() if seconds is not None}

    def _missing_seconds(self, name: str, is_there: Callable[[], bool]) -> float | None:
        if is_there():
            self._missed_since.pop(name, None)
            return None
        now = self._clock()
        return now - self._missed_since.setdefault(name, now)


class SkewWatch:
    """Logs once when the clocks are found to differ, and once when they agree again; `peer` names the other one."""

    def __init__(self, clock: FollowedClock, log: Logger, peer: str) -> None:
        self._clock = clock
        self._log = log
        self._peer = peer
        self._is_off = False

    def look(self) -> None:
        """Compare the clocks."""
        skew = self._clock.skew_seconds
        is_off = abs(skew) > SKEW_SECONDS
        if is_off == self._is_off:
            return
        self._is_off = is_off
        if is_off:
            fix = "run a time service on this node; deadlines count by the other clock"
            self._log.warning("clock differs", peer=self._peer, ahead_seconds=round(skew, 1), fix=fix)
        else:
            self._log.info("clock agrees", peer=self._peer)
