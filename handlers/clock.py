"""A clock that follows another computer's, so that deadlines are compared on one clock.

A Redis server tells its time in each answer, Pub/Sub in each push; the local clock may be wrong by hours.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

SKEW_SECONDS: Final = 5.0
"""How far the local clock may be off before it is said."""
_SAMPLE_SECONDS: Final = 30.0
"""How long an exact observation wins over a newer one that took longer: clocks drift by milliseconds in that time."""
_MESSAGE_SECONDS: Final = 600.0
"""How long what a message told is believed, unless newer ones say more."""


class FollowedClock:
    """Unix seconds of another computer; of this one until the first observation.

    `monotonic` gives seconds that no clock change moves, `local` this computer's Unix seconds.
    """

    def __init__(
        self, monotonic: Callable[[], float] = time.monotonic, local: Callable[[], float] = time.time
    ) -> None:
        self._monotonic = monotonic
        self._local = local
        self._offset: float | None = None
        self._error = 0.0
        self._observed_at = 0.0

    def now(self) -> float:
        """The other computer's Unix seconds."""
        return self._local() if self._offset is None else self._monotonic() + self._offset

    def started(self) -> float:
        """When a question is sent, for `observe`."""
        return self._monotonic()

    def observe(self, seconds: float, started_at: float) -> None:
        """The other computer said `seconds`, at some time since `started_at`."""
        ended_at = self._monotonic()
        error = (ended_at - started_at) / 2
        offset = seconds - (started_at + ended_at) / 2
        is_kept = self._offset is not None and ended_at - self._observed_at < _SAMPLE_SECONDS
        if is_kept and self._error < error and abs(offset - (self._offset or 0.0)) <= error + self._error:
            return
        self._offset, self._error, self._observed_at = offset, error, ended_at

    def observe_sent(self, seconds: float) -> None:
        """A message that has just arrived was sent at `seconds` of the other computer.

        How long it was under way is not known, so the latest of the last minutes counts.
        """
        self._forget_old()
        if self._offset is None:
            self._raise_to(seconds)
        else:
            self.observe_at_least(seconds)

    def observe_at_least(self, seconds: float) -> None:
        """It is `seconds` by the other computer, or any time later."""
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
        """A deadline by the other computer's clock as one by the local clock, where these are known to differ."""
        skew = self.skew_seconds
        return deadline + skew if abs(skew) > SKEW_SECONDS else deadline

    @property
    def skew_seconds(self) -> float:
        """How far the local clock is ahead of the other one; negative: behind."""
        return self._local() - self.now()
