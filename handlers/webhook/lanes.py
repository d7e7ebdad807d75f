"""Waiting results and pauses of each receiver, so that none delays another.

A waiting result uses no slot. Memory holds a bounded number of results for each receiver. The others are parked: only
their leases are renewed, and when there is room they are released and received again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Final

import msgspec

from handlers.backoff import Backoff
from handlers.webhook.destinations import WebhookTarget

LONGEST_PAUSE_SECONDS: Final = 300.0
_LONGEST_RETRY_AFTER_SECONDS: Final = 3_600.0
"""Longest `Retry-After` that is followed, so that a receiver cannot postpone its results indefinitely."""


@dataclass(slots=True, eq=False)
class Lane:
    """Slots and memory of a list entry, or of the default receiver."""

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
        """Whether another result may wait in memory. The first one always may."""
        return self.held == 0 or (self.held < self.most_held and self.held_bytes < self.most_bytes)


class Receiver(msgspec.Struct, eq=False):
    """State of one receiver URL. Times are in Unix seconds.

    While the receiver `rests`, one result at a time is sent, after growing pauses. A refusal of a single result (a 400,
    a redirect) does not start a rest.
    """

    target: WebhookTarget
    lane: Lane
    most_held: int
    backoff: Backoff
    held: int = 0
    is_gone: bool = False
    rests: bool = False
    rests_until: float = 0.0
    failing_since: float | None = None
    took_at: float = 0.0
    turn: asyncio.Lock = msgspec.field(default_factory=asyncio.Lock)
    parked: deque[bytes] = msgspec.field(default_factory=deque)
    _pause_seconds: float = 0.0
    _failed_at: float = 0.0

    @property
    def has_room(self) -> bool:
        """Whether another result of this receiver may wait in memory."""
        return self.held < self.most_held and self.lane.has_room

    @property
    def is_idle(self) -> bool:
        return not (self.held or self.parked or self.is_gone or self.failing_since is not None)

    def enter(self, size_bytes: int) -> None:
        self.held += 1
        self.lane.held += 1
        self.lane.held_bytes += size_bytes

    def leave(self, size_bytes: int) -> list[bytes]:
        """Stop counting a result. Returns claim keys of parked results to release."""
        self.lane.held -= 1
        self.lane.held_bytes -= size_bytes
        return self.step_aside() or _next(self.lane.parked, self.lane.held)

    def step_aside(self) -> list[bytes]:
        """Let a result wait alone. Returns claim keys of parked results to release.

        The result stays in memory, but does not delay the receiver's others.
        """
        self.held -= 1
        return _next(self.parked, self.held)

    def step_back(self) -> None:
        """Count a result that waited alone for the receiver again."""
        self.held += 1

    def park(self, claim_key: bytes) -> None:
        """Park a result for which memory has no room. Only its lease is kept."""
        (self.parked if self.held >= self.most_held else self.lane.parked).append(claim_key)

    def is_down(self, now: float, seconds: float) -> bool:
        """Whether the receiver has accepted nothing for `seconds`."""
        return self.failing_since is not None and now - self.failing_since >= seconds

    def is_due(self, now: float) -> bool:
        return not self.rests or (now >= self.rests_until and not self.turn.locked())

    def took(self, now: float) -> None:
        self.rests, self.failing_since = False, None
        self.took_at = now
        self.backoff.reset()

    def refused(self, now: float) -> None:
        self.failing_since = now if self.failing_since is None else self.failing_since

    def failed(self, began_at: float, now: float, retry_after_seconds: float | None) -> None:
        """Record a failed call. Concurrent failures count as one."""
        self.refused(now)
        if began_at >= self._failed_at:
            self._pause_seconds = self.backoff.next_seconds()
        self._failed_at = now
        named = min(retry_after_seconds or 0.0, _LONGEST_RETRY_AFTER_SECONDS)
        self.rests_until = max(self.rests_until, now + max(named, self._pause_seconds))
        self.rests = True


def _next(parked: deque[bytes], held: int) -> list[bytes]:
    """Claim keys to release: one, or all if memory has no result."""
    count = min(len(parked), 1 if held else len(parked))
    return [parked.popleft() for _ in range(count)]
