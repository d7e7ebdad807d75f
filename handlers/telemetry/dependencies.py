"""What a handler needs beside itself, as its own calls found it last. Nobody is asked for this: it costs no call."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

GATEWAY: Final = "gateway"
RESULTS: Final = "results"
MEMORY: Final = "memory"
DEPENDENCIES: Final = (GATEWAY, RESULTS, MEMORY)
"""Where requests are sent, the topic that takes the results, the Redis that knows deliveries."""

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

    def __init__(self) -> None:
        self._known: dict[str, Dependency] = {}

    def add(self, name: str) -> Dependency:
        """One of `DEPENDENCIES`."""
        return self._known.setdefault(name, Dependency())

    def names(self) -> list[str]:
        """Of all that were added."""
        return list(self._known)

    def failing(self) -> dict[str, float]:
        """Seconds for which each has failed that fails now."""
        found = {name: one.failing_seconds for name, one in self._known.items()}
        return {name: seconds for name, seconds in found.items() if seconds is not None}
