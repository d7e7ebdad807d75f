"""How many second and later attempts may be made: a share of the answers, so that retries never become the load.

First attempts are always free. Each final answer earns a share of one retry, and one a second is always there, so
that a few requests are retried even where nothing is answered.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

_MOST: Final = 100.0
"""Retries that can be saved up; enough for a burst of failures after a calm time."""
_PER_SECOND: Final = 1.0


class RetryBudget:
    """A bucket of retries; `share` of each answer is earned. `clock` gives seconds that no clock change moves."""

    def __init__(self, share: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._share = share
        self._clock = clock
        self._left = _MOST
        self._at = clock()

    def earn(self) -> None:
        """A request was answered for good."""
        self._left = min(_MOST, self._left + self._share)

    def spend(self) -> bool:
        """Whether a retry may go now; if so, it is paid."""
        now = self._clock()
        self._left = min(_MOST, self._left + (now - self._at) * _PER_SECOND)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
