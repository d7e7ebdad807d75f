"""Who waits for which receiver, and how long each rests: what one does not take holds up no other.

What waits for its receiver takes no slot. Of each receiver only so much is held in memory; the rest is parked: its
lease is kept by its key alone, and it is given back to be received again when there is room.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from handlers.webhook.destinations import Target

LONGEST_PAUSE_SECONDS: Final = 300.0
_LONGEST_RETRY_AFTER_SECONDS: Final = 3_600.0
"""Longest `Retry-After` that is honoured: a receiver cannot postpone its results indefinitely."""


@dataclass(slots=True, eq=False)
class Lane:
    """One entry of the operator's list, or the operator's own address: slots, and room for what waits for it."""

    at_once: int
    most_held: int
    most_bytes: int
    held: int = 0
    held_bytes: int = 0
    slots: asyncio.Semaphore = field(init=False)
    parked: deque[bytes] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.slots = asyncio.Semaphore(self.at_once)

    @property
    def has_room(self) -> bool:
        """Whether another result may wait in memory; a single one always may."""
        return self.held == 0 or (self.held < self.most_held and self.held_bytes < self.most_bytes)


@dataclass(slots=True, eq=False)
class Receiver:
    """One address. Instants are in Unix seconds.

    While it `rests` it is tried by one result at a time, each after a growing pause; results that it refuses for
    themselves (a 400, a redirect) do not let it rest.
    """

    target: Target
    lane: Lane
    most_held: int
    first_pause_seconds: float
    held: int = 0
    is_gone: bool = False
    rests: bool = False
    rests_until: float = 0.0
    failing_since: float | None = None
    took_at: float = 0.0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    parked: deque[bytes] = field(default_factory=deque)
    _pause_seconds: float = 0.0
    _failed_at: float = 0.0

    @property
    def has_room(self) -> bool:
        """Whether another of its results may wait in memory."""
        return self.held < self.most_held and self.lane.has_room

    @property
    def is_idle(self) -> bool:
        """Whether nothing would be forgotten with it."""
        return not (self.held or self.parked or self.is_gone or self.failing_since is not None)

    def enter(self, size_bytes: int) -> None:
        """A result waits for it."""
        self.held += 1
        self.lane.held += 1
        self.lane.held_bytes += size_bytes

    def leave(self, size_bytes: int) -> list[bytes]:
        """A result waits no more; the claim keys of parked ones that are to be received again."""
        self.lane.held -= 1
        self.lane.held_bytes -= size_bytes
        return self.step_aside() or _next(self.lane.parked, self.lane.held)

    def step_aside(self) -> list[bytes]:
        """A result waits for itself: it stays in memory, but holds none of the receiver's others up."""
        self.held -= 1
        return _next(self.parked, self.held)

    def step_back(self) -> None:
        """It waits for the receiver again."""
        self.held += 1

    def park(self, claim_key: bytes) -> None:
        """A result that waits by its lease alone: where the room is short."""
        (self.parked if self.held >= self.most_held else self.lane.parked).append(claim_key)

    def is_down(self, now: float, seconds: float) -> bool:
        """Whether it took nothing for `seconds`: a result is then tried once, when a try is due."""
        return self.failing_since is not None and now - self.failing_since >= seconds

    def is_due(self, now: float) -> bool:
        """Whether a call could be made at once."""
        return not self.rests or (now >= self.rests_until and not self.turn.locked())

    def took(self, now: float) -> None:
        """It works."""
        self.rests, self.failing_since = False, None
        self.took_at = now
        self._pause_seconds = 0.0

    def refused(self, now: float) -> None:
        """It would not have one result."""
        self.failing_since = now if self.failing_since is None else self.failing_since

    def failed(self, began_at: float, now: float, draw: float, retry_after_seconds: float | None) -> None:
        """It had no answer, or no room. Calls that failed side by side are one failure."""
        self.refused(now)
        if began_at >= self._failed_at:
            doubled = 2 * self._pause_seconds or self.first_pause_seconds
            self._pause_seconds = min(doubled, LONGEST_PAUSE_SECONDS)
        self._failed_at = now
        wished = min(retry_after_seconds or 0.0, _LONGEST_RETRY_AFTER_SECONDS)
        self.rests_until = max(self.rests_until, now + max(wished, self._pause_seconds * (0.5 + draw)))
        self.rests = True


def _next(parked: deque[bytes], held: int) -> list[bytes]:
    """One for one that went; all when none is left, whose going would bring them back: others may read them too."""
    count = min(len(parked), 1 if held else len(parked))
    return [parked.popleft() for _ in range(count)]
