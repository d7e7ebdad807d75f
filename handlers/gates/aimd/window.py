"""One congestion window for each band, and how the gateway's answers move them. Pure: instants come in.

The gateway serves bands in order, so congestion starts at the lowest band and climbs. Hence a rejection
shrinks the band it hit and those below, and stops the growth of those above for a while; an answer in a band
shows that there was room below the bands above it, and ends their stop. Answers come out of order: only a
request that was sent after an event may say anything about it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from handlers.gates.labels import BANDS

GENTLE: Final = 0.9
"""The factor for signs that come before a rejection: expiry in the gateway's queue, long queueing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowOptions:
    """`increase` is added for each answer in slow start, for each full window after it."""

    min_window: float = 1.0
    max_window: float = 256.0
    increase: float = 1.0
    decrease_factor: float = 0.5
    hold_seconds: float = 1.0
    queue_target_seconds: float = 0.0


@dataclass(slots=True)
class Band:
    """The window of one band. Instants are seconds of one clock; 0 is long ago."""

    window: float
    threshold: float
    """Below it a window grows by slow start; where the last decrease left it."""
    in_flight: int = 0
    shrunk_at: float = 0.0
    closed_until: float = 0.0
    held_until: float = 0.0
    held_since: float = 0.0


class Windows:
    """All bands, by number (`handlers.gates.labels`)."""

    def __init__(self, options: WindowOptions) -> None:
        self._options = options
        self.bands = [Band(options.min_window, options.max_window) for _ in BANDS]

    def room(self, band: int, now: float) -> int:
        """How many more the band may have in flight."""
        found = self.bands[band]
        if now < found.closed_until:
            return 0
        return max(0, int(found.window) - found.in_flight)

    def accepted(self, band: int, sent_at: float, now: float, queue_seconds: float | None) -> None:
        """An answer came: the window grows, unless something newer, or a long queue, speaks against it."""
        for above in self.bands[:band]:
            if sent_at > above.held_since:
                above.held_until = 0.0
        found = self.bands[band]
        target = self._options.queue_target_seconds
        if target > 0 and queue_seconds is not None and queue_seconds >= target:
            if queue_seconds >= 2 * target:
                self._shrink(found, GENTLE, sent_at, now)
            return
        if now < found.held_until or sent_at <= found.shrunk_at:
            return
        step = self._options.increase
        if found.window >= found.threshold:
            step /= found.window
        found.window = min(self._options.max_window, found.window + step)

    def rejected(self, band: int, sent_at: float, now: float, retry_after_seconds: float | None) -> None:
        """No capacity: one decrease per flight, here and below; a stop above; closed for `Retry-After`."""
        found = self.bands[band]
        is_new = sent_at > found.shrunk_at
        self._shrink(found, self._options.decrease_factor, sent_at, now)
        if retry_after_seconds:
            self._close(found, now + retry_after_seconds)
        if not is_new:
            return
        for below in self.bands[band + 1 :]:
            self._shrink(below, self._options.decrease_factor, sent_at, now)
            if found.closed_until > now:
                self._close(below, found.closed_until)
        self._hold_above(band, now)

    def expired(self, band: int, sent_at: float, now: float) -> None:
        """It waited in the gateway's queue until that gave it up: too many of ours are in there."""
        found = self.bands[band]
        is_new = sent_at > found.shrunk_at
        self._shrink(found, GENTLE, sent_at, now)
        if is_new:
            self._hold_above(band, now)

    def cap(self, band: int, headroom: float) -> None:
        """The gateway says how many more of this band it has room for."""
        found = self.bands[band]
        most = max(self._options.min_window, found.in_flight + headroom)
        if found.window > most:
            found.window = most
            found.threshold = min(found.threshold, most)

    def _shrink(self, band: Band, factor: float, sent_at: float, now: float) -> None:
        if sent_at <= band.shrunk_at:
            return
        band.window = band.threshold = max(self._options.min_window, band.window * factor)
        band.shrunk_at = now

    def _close(self, band: Band, until: float) -> None:
        """Reopens from the smallest window, in slow start up to where the decrease left the threshold."""
        band.closed_until = max(band.closed_until, until)
        band.window = self._options.min_window

    def _hold_above(self, band: int, now: float) -> None:
        for above in self.bands[:band]:
            above.held_until = max(above.held_until, now + self._options.hold_seconds)
            above.held_since = now
