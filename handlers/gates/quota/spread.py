"""When the many that wait for one rate should ask again: one after the other, not all at once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

_LONGEST_SECONDS: Final = 60.0  # a place far down the line is a guess: units come back, clients give up
_MOST_KEYS: Final = 10_000


class Spread:
    """Gives each that is turned away its own time, `interval_seconds` after the one before it.

    The interval may be changed when more is known of it.
    """

    def __init__(self, interval_seconds: float, clock: Callable[[], float]) -> None:
        self.interval_seconds = interval_seconds
        self._clock = clock
        self._last_at: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._last_at)

    def delay(self, key: str, wait_seconds: float) -> float:
        """Seconds until the next in line should ask, `wait_seconds` at the least."""
        now = self._clock()
        at = max(now + wait_seconds, self._last_at.get(key, 0.0) + self.interval_seconds)
        if at - now > _LONGEST_SECONDS:
            at = now + max(wait_seconds, _LONGEST_SECONDS / 2)
        self._last_at[key] = at
        self._last_at.move_to_end(key)
        if len(self._last_at) > _MOST_KEYS:
            self._last_at.popitem(last=False)  # the one that asked longest ago
        return at - now
