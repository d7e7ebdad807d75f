"""Delays: backoff between attempts, and pauses while a dependency is down.

A request is retried after `2 s · 2^attempt`, at most 60 s, with equal jitter, and always before its deadline. A longer
`Retry-After` takes precedence, up to half of the time left. It gets jitter too, so that requests with the same
`Retry-After` are not retried at the same time.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from handlers.number_text import decimal

BASE_SECONDS: Final = 2.0
CAP_SECONDS: Final = 60.0
_LAST_DOUBLING: Final = 5  # 2 s · 2^5 exceeds the cap; a much larger exponent would overflow
_SPREAD: Final = 0.25  # most jitter on a Retry-After; with it, half of the time left still ends before the deadline


def backoff_seconds(attempt: int, jitter: float) -> float:
    """Seconds to wait after the failed `attempt`, counted from 0.

    `jitter` is random in [0, 1).
    """
    ceiling = min(CAP_SECONDS, BASE_SECONDS * 2.0 ** min(max(attempt, 0), _LAST_DOUBLING))
    return ceiling / 2 + jitter * ceiling / 2


def retry_delay(
    attempt: int,
    *,
    left_seconds: float,
    hint_seconds: float | None,
    jitter: float,
    earliest_seconds: float = 0.0,
) -> float | None:
    """Seconds to wait before the next attempt. None if the deadline is too close.

    `left_seconds` is the time to the deadline, `hint_seconds` the gateway's `Retry-After`, and `earliest_seconds` the
    shortest delay that the transport allows (Pub/Sub's backoff).
    """
    delay = backoff_seconds(attempt, jitter)
    if hint_seconds is not None and hint_seconds > delay:
        delay = min(hint_seconds, left_seconds / 2) * (1 + _SPREAD * jitter)
    elif delay >= left_seconds:
        delay = left_seconds / 2
    # Delays shrink near the deadline; none may be shorter than half of the first delay.
    if delay < BASE_SECONDS / 2:
        return None
    delay = max(delay, earliest_seconds)
    return delay if delay < left_seconds else None


def parse_retry_after(value: str | None, now: float) -> float | None:
    """Parse a `Retry-After` header (RFC 9110, 10.2.3) into seconds.

    Its value is a number of seconds or an HTTP date. None if absent, invalid or negative; 0 for a date in the past.
    """
    if not value:
        return None
    text = value.strip()
    if text.isascii() and text.replace(".", "", 1).isdigit():
        return decimal(text)
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0.0, at.timestamp() - datetime.fromtimestamp(now, UTC).timestamp())


def jittered(seconds: float, jitter: float) -> float:
    """A pause of `seconds` on average, spread by half; `jitter` is random in [0, 1)."""
    return seconds * (0.5 + jitter)


class Backoff:
    """Growing pauses while a call fails or finds nothing.

    They double up to a cap, with equal jitter.
    """

    __slots__ = ("_cap_seconds", "_first_seconds", "_jitter", "_next_seconds")

    def __init__(
        self,
        first_seconds: float = 0.05,
        cap_seconds: float = 2.0,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._first_seconds = first_seconds
        self._cap_seconds = cap_seconds
        self._jitter = jitter
        self._next_seconds = first_seconds

    @property
    def has_failed(self) -> bool:
        return self._next_seconds > self._first_seconds

    def next_seconds(self) -> float:
        """The next pause. Each call counts as a failure."""
        ceiling = self._next_seconds
        self._next_seconds = min(self._cap_seconds, ceiling * 2)
        return ceiling * (0.5 + self._jitter() / 2)

    async def pause(self) -> None:
        await asyncio.sleep(self.next_seconds())

    def reset(self) -> None:
        """Record a success. The next pause is the first one again."""
        self._next_seconds = self._first_seconds
