"""Estimate another computer's clock, to compare deadlines on one clock.

Claims return the Redis server's time, pushes have the time of their publication. The local clock may be wrong by hours.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

SKEW_SECONDS: Final = 5.0
"""Seconds by which the local clock may differ before the difference is logged."""
_SAMPLE_SECONDS: Final = 30.0
"""Seconds for which an observation is preferred to a newer, less exact one. Clocks drift by milliseconds meanwhile."""
_MESSAGE_SECONDS: Final = 600.0
"""Seconds for which the time of a message is used, unless a later message shows a later time."""


def steady_time() -> float:
    """Unix seconds that do not jump when this computer's clock is set; for durations, not for deadlines."""
    return _STARTED_AT + time.monotonic()


_STARTED_AT: Final = time.time() - time.monotonic()


class FollowedClock:
    """Another computer's Unix seconds, or this one's until the first observation.

    `monotonic` returns seconds that a change of the clock does not affect, `local` this computer's Unix seconds.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic, local: Callable[[], float] = time.time) -> None:
        self._monotonic = monotonic
        self._local = local
        self._offset: float | None = None
        self._error = 0.0
        self._observed_at = 0.0

    def now(self) -> float:
        """The other computer's Unix seconds."""
        return self._local() if self._offset is None else self._monotonic() + self._offset

    def started(self) -> float:
        return self._monotonic()

    def observe(self, seconds: float, started_at: float) -> None:
        """Record a reply with the other computer's time, `seconds`.

        `started_at` is the value of `started` before the call.
        """
        ended_at = self._monotonic()
        error = (ended_at - started_at) / 2
        offset = seconds - (started_at + ended_at) / 2
        is_kept = self._offset is not None and ended_at - self._observed_at < _SAMPLE_SECONDS
        if is_kept and self._error < error and abs(offset - (self._offset or 0.0)) <= error + self._error:
            return
        self._offset, self._error, self._observed_at = offset, error, ended_at

    def observe_sent(self, seconds: float) -> None:
        """Record a message that was sent at `seconds` of the other clock.

        The message may have been sent long ago, so the latest time among recent messages is used.
        """
        self._forget_old()
        if self._offset is None:
            self._raise_to(seconds)
        else:
            self.observe_at_least(seconds)

    def observe_at_least(self, seconds: float) -> None:
        """Record that the other clock shows `seconds` or later."""
        self._forget_old()
        if self.now() < seconds:
            self._raise_to(seconds)

    def _raise_to(self, seconds: float) -> None:
        now = self._monotonic()
        self._offset, self._observed_at = seconds - now, now

    def _forget_old(self) -> None:
        if self._monotonic() - self._observed_at > _MESSAGE_SECONDS:
            self._offset = None

    def local_deadline(self, deadline: float) -> float:
        """Convert a deadline to the local clock. A skew up to `SKEW_SECONDS` is ignored."""
        skew = self.skew_seconds
        return deadline + skew if abs(skew) > SKEW_SECONDS else deadline

    @property
    def skew_seconds(self) -> float:
        """Seconds by which the local clock is ahead of the other. Negative if behind."""
        return self._local() - self.now()
