"""The number of requests that may start now, derived from gates' budgets.

A budget limits concurrency: it is the fraction of the pool's slots that may be in use at a time. Requests that were
started after a reading count against the budget of that reading.

- Less than one slot allows one request at a time with pauses, so that on average the allowed fraction is used:
  with 0.25 slots, a request of 2 s is followed by a pause of 6 s.
- A headroom (`Share.headroom`) is added to the slots in use when the metric was measured. The exact time is unknown: it
  may be up to `Share.lag_seconds` before the reading. So the headroom is added to the lowest use in that period;
  otherwise requests that the metric does not count yet would use the same headroom twice.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from handlers.clock import steady_time
from handlers.gates.gate import Gate, Share

_LONGEST_PAUSE_SECONDS: Final = 60.0  # with a tiny share, a long request must not close the pool for hours
_ROUNDING: Final = 1e-9  # 0.3 x 10 slots is 3, despite binary fractions
_GRAIN_SECONDS: Final = 0.05  # about the least age of a metric, when it is read from the router itself
_MARKS: Final = 1_024  # about 50 s of history, for the longest lag plus a reading's age; searched once per reading


class ProcessShare(msgspec.Struct, frozen=True):
    """A process's share of a pool, as number `index` of `count` processes.

    `index` counts from 0. The other processes have `elsewhere` slots in use. If not `is_known`, the share is 0.
    """

    index: int = 0
    count: int = 1
    elsewhere: int = 0
    is_known: bool = True

    def of(self, slots: float) -> float:
        """This process's share of `slots` (may be negative), in whole slots. All shares add up to `slots`."""
        if not self.is_known:
            return 0.0
        if self.count == 1:
            return slots
        whole = math.floor(slots + _ROUNDING)
        if whole == 0:  # less than one slot means one request with pauses, in one process
            return slots if self.index == 0 else 0.0
        return float(whole * (self.index + 1) // self.count - whole * self.index // self.count)


_WHOLE_POOL: Final = ProcessShare()


def whole_pool() -> ProcessShare:
    """The share of a process that has the pool to itself."""
    return _WHOLE_POOL


def all_shares(gates: Sequence[Gate]) -> Callable[[], tuple[Share, ...]]:
    """A function that returns the current shares of all `gates`."""
    return lambda: tuple(share for gate in gates for share in gate.shares())


class Allowance:
    """Limits a pool's slots in use to the gates' budgets.

    `shares` (the gates' budgets) and `own_share` (this process's share) are called for each check. `clock` returns Unix
    seconds, as in `Share.at`.
    """

    def __init__(
        self,
        slots: int,
        shares: Callable[[], tuple[Share, ...]],
        *,
        own_share: Callable[[], ProcessShare] = whole_pool,
        clock: Callable[[], float] = steady_time,
    ) -> None:
        self.change(slots, shares, own_share=own_share)
        self.in_use = 0
        self._clock = clock
        self._low_water = _LowWater()
        self._credit = 0.0
        self._credit_at = clock()
        self._allowed = 0.0

    def change(
        self,
        slots: int,
        shares: Callable[[], tuple[Share, ...]],
        *,
        own_share: Callable[[], ProcessShare] = whole_pool,
    ) -> None:
        """Apply other slots and shares; slots in use stay counted."""
        if slots < 1:
            raise ValueError("a pool needs at least one slot")
        self.slots, self._shares, self._own_share = slots, shares, own_share

    def limit(self) -> float:
        """Slots that may be in use now: 0 to `slots`, fractions included."""
        ours = self._own_share()
        allowed = min((self._of(share, ours) for share in self._shares()), default=self._full(ours))
        self._settle_credit(allowed)
        return allowed

    def room(self) -> int:
        allowed = self.limit()
        if allowed <= 0:
            return 0
        if allowed < 1:
            return 1 if self.in_use == 0 and self._credit >= 0 else 0
        return max(0, math.floor(allowed + _ROUNDING) - self.in_use)

    def started(self, count: int = 1) -> None:
        """Count `count` requests that each took a slot."""
        self._settle_credit(self._allowed)
        self.in_use += count
        self._low_water.note(self._clock(), self.in_use)

    def finished(self, count: int = 1) -> None:
        if count > self.in_use:
            raise ValueError("more slots freed than taken")
        self._settle_credit(self._allowed)
        self.in_use -= count
        self._low_water.note(self._clock(), self.in_use)

    def _full(self, ours: ProcessShare) -> float:
        """This process's slots, less what other processes use beyond their shares."""
        if not ours.is_known:
            return 0.0
        return max(0.0, min(ours.of(self.slots), float(self.slots - ours.elsewhere)))

    def _of(self, share: Share, ours: ProcessShare) -> float:
        part = min(1.0, max(0.0, share.part)) if share.part == share.part else 0.0  # NaN closes the gate
        total = part * self.slots
        if share.headroom is None:
            return max(0.0, min(ours.of(total), total - ours.elsewhere)) if total else 0.0
        held, least = self._low_water.at(share.at, share.lag_seconds)
        change = ours.of(share.headroom * self.slots)
        # A positive headroom is added to the lowest use, which the metric has certainly counted; the use at the reading
        # stays allowed in any case. A negative headroom is subtracted from the use at the reading.
        allowed = held + change if change < 0 else max(float(held), least + change)
        return min(self._full(ours), max(0.0, max(ours.of(total), allowed) - share.fewer))

    def _settle_credit(self, allowed: float) -> None:
        """Add up the slot-seconds used above the limit.

        If the limit is below one slot, the next request waits until this debt is paid.
        """
        now = self._clock()
        passed = max(0.0, now - self._credit_at)
        credit = self._credit + (self._allowed - self.in_use) * passed
        debt = min(1.0, self._allowed) * _LONGEST_PAUSE_SECONDS
        self._credit = min(0.0, max(credit, -debt))
        self._credit_at = now
        self._allowed = allowed


class _LowWater:
    """A bounded history of the number of slots in use."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque()
        self._before = 0  # the slots in use at the time of the oldest mark
        self._asked: tuple[float, float] | None = None
        self._found = (0, 0)

    def note(self, now: float, in_use: int) -> None:
        """Record that `in_use` slots are in use from `now` on."""
        if len(self._marks) > 1 and now - self._marks[-2][0] < _GRAIN_SECONDS:
            # Within `_GRAIN_SECONDS` only the lowest use matters; the last mark is kept, because it is still current.
            at, least = self._marks[-2]
            self._marks[-2] = (at, min(least, self._marks[-1][1]))
            self._marks[-1] = (now, in_use)
            return
        self._marks.append((now, in_use))
        if len(self._marks) > _MARKS:
            self._before = self._marks.popleft()[1]

    def at(self, at: float, lag_seconds: float) -> tuple[int, int]:
        """Slots in use at `at`, and the fewest in the `lag_seconds` before."""
        # Called many times per reading, so the result is kept: later marks do not change it.
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
