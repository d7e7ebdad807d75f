"""From a budget to the number of requests that may start now. Pure, but for the counts it keeps.

A budget means concurrency: of `slots`, the part that the gate allows may be in use at a time, whatever a
request lasts and however old the reading is. So a burst counts against the reading that admitted it.

- Less than one slot is not nothing: one request at a time, with pauses after it, so that the average use is
  what was allowed (allowed 0.25 slots: a request of 2 s is followed by 6 s of nothing).
- A headroom (`Share.headroom`) changes what was in use when the reading was taken. A metric is older than its
  fetch, so it grows from the least that was in use within `Share.lag_seconds` before: what may not have been
  in the metric yet never makes room twice.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from handlers.gates.gate import Share

_LONGEST_PAUSE_SECONDS: Final = 60.0  # a long request at a tiny share must not close the pool for hours
_ROUNDING: Final = 1e-9  # 0.3 x 10 slots is 3, whatever binary fractions say
_GRAIN_SECONDS: Final = 0.05  # a metric read from the router itself is hardly older
_MARKS: Final = 1_024  # about 50 s of history: the longest lag and a reading's age; read once a reading


@dataclass(frozen=True, slots=True)
class Part:
    """What of a pool is this process's: it is the `place`-th (from 0) of `count` that share the pool.

    `elsewhere` slots are in use by the others. Not `is_known` is nothing, until it is.
    """

    place: int = 0
    count: int = 1
    elsewhere: int = 0
    is_known: bool = True

    def of(self, slots: float) -> float:
        """Our part of so many slots, below 0 as well: the parts of all add up to them, to whole slots."""
        if not self.is_known:
            return 0.0
        if self.count == 1:
            return slots
        whole = math.floor(slots + _ROUNDING)
        if whole == 0:  # less than one slot is one request with pauses: one process sees to it
            return slots if self.place == 0 else 0.0
        return float(whole * (self.place + 1) // self.count - whole * self.place // self.count)


ALL_OF_IT: Final = Part()


class Allowance:
    """Counts what a pool has in use against what its gate allows.

    `shares` and `part` are asked anew each time; `clock` gives seconds (Unix, as `Share.at`).
    """

    def __init__(
        self,
        slots: int,
        shares: Callable[[], tuple[Share, ...]],
        *,
        part: Callable[[], Part] = lambda: ALL_OF_IT,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if slots < 1:
            raise ValueError("a pool needs at least one slot")
        self.slots = slots
        self.in_use = 0
        self._shares = shares
        self._part = part
        self._clock = clock
        self._low_water = _LowWater()
        self._credit = 0.0
        self._credit_at = clock()
        self._allowed = 0.0
        self._heir: Allowance | None = None

    def take_over(self, before: Allowance) -> None:
        """Count what `before` has in use as ours too, until it is given back there: one limit holds both.

        For a pool whose settings have changed while requests are in flight. `before` starts nothing any more.
        """
        self.in_use = before.in_use
        self._low_water, before._low_water = before._low_water, _LowWater()
        self._credit, self._credit_at, self._allowed = before._credit, before._credit_at, before._allowed
        before._heir = self

    def limit(self) -> float:
        """How many slots the gate allows in use now, fractions included: 0 to `slots`."""
        ours = self._part()
        allowed = min((self._of(share, ours) for share in self._shares()), default=self._full(ours))
        self._settle_credit(allowed)
        return allowed

    def room(self) -> int:
        """How many requests may start now."""
        allowed = self.limit()
        if allowed <= 0:
            return 0
        if allowed < 1:
            return 1 if self.in_use == 0 and self._credit >= 0 else 0
        return max(0, math.floor(allowed + _ROUNDING) - self.in_use)

    def started(self, count: int = 1) -> None:
        """`count` requests took a slot each."""
        self._settle_credit(self._allowed)
        self.in_use += count
        self._low_water.note(self._clock(), self.in_use)
        if self._heir is not None:  # what was being claimed when the heir came
            self._heir.started(count)

    def finished(self, count: int = 1) -> None:
        """`count` requests gave their slot back."""
        if count > self.in_use:
            raise ValueError("more slots given back than taken")
        self._settle_credit(self._allowed)
        self.in_use -= count
        self._low_water.note(self._clock(), self.in_use)
        if self._heir is not None:
            self._heir.finished(count)

    def _full(self, ours: Part) -> float:
        """Every slot that is ours, less what others still use beyond their parts."""
        if not ours.is_known:
            return 0.0
        return max(0.0, min(ours.of(self.slots), float(self.slots - ours.elsewhere)))

    def _of(self, share: Share, ours: Part) -> float:
        part = min(1.0, max(0.0, share.part)) if share.part == share.part else 0.0  # NaN closes
        total = part * self.slots
        if share.headroom is None:
            return max(0.0, min(ours.of(total), total - ours.elsewhere)) if total else 0.0
        held, least = self._low_water.at(share.at, share.lag_seconds)
        change = ours.of(share.headroom * self.slots)
        # More comes on top of the least, which the metric has certainly counted; less comes off what was
        # held. Between the two the pool keeps what it has: a dip that is over must not be repeated.
        allowed = held + change if change < 0 else max(float(held), least + change)
        return min(self._full(ours), max(0.0, max(ours.of(total), allowed) - share.fewer))

    def _settle_credit(self, allowed: float) -> None:
        """Slot-seconds not used (or used too much) since the last look; only matters below one slot."""
        now = self._clock()
        passed = max(0.0, now - self._credit_at)
        credit = self._credit + (self._allowed - self.in_use) * passed
        debt = min(1.0, self._allowed) * _LONGEST_PAUSE_SECONDS
        self._credit = min(0.0, max(credit, -debt))
        self._credit_at = now
        self._allowed = allowed


class _LowWater:
    """What was in use at an instant, and the least within a time before it, from marks a grain apart."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque()
        self._before = 0  # in use at the start of the oldest mark's time
        self._asked: tuple[float, float] | None = None
        self._found = (0, 0)

    def note(self, now: float, in_use: int) -> None:
        """`in_use` holds from `now` on."""
        if len(self._marks) > 1 and now - self._marks[-2][0] < _GRAIN_SECONDS:
            # Within one grain only the least counts; the last mark stays apart, since it holds on.
            at, least = self._marks[-2]
            self._marks[-2] = (at, min(least, self._marks[-1][1]))
            self._marks[-1] = (now, in_use)
            return
        self._marks.append((now, in_use))
        if len(self._marks) > _MARKS:
            self._before = self._marks.popleft()[1]

    def at(self, at: float, lag_seconds: float) -> tuple[int, int]:
        """What was in use at `at`, and the least from `at - lag_seconds` to then."""
        # Asked many times for each reading; what came after a reading does not change what was before it.
        if self._asked != (at, lag_seconds):
            self._asked = (at, lag_seconds)
            self._found = self._search(at, lag_seconds)
        return self._found

    def _search(self, at: float, lag_seconds: float) -> tuple[int, int]:
        start = at - lag_seconds
        least: int | None = None
        holding = self._before
        for since, in_use in self._marks:
            if since > at:
                break
            if since > start:
                least = min(holding, in_use) if least is None else min(least, in_use)
            holding = in_use
        return holding, holding if least is None else least
