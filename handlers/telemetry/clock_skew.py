"""Says in the log when the local clock is off, compared with the broker's."""

from __future__ import annotations

from handlers.clock import SKEW_SECONDS, FollowedClock
from handlers.telemetry.logs import Logger


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
