"""Pauses between tries while a dependency is down: growing, jittered, and back to the first after success."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable


class Patience:
    """Pauses of `first_seconds`, doubling up to `cap_seconds`, each drawn from its upper half."""

    def __init__(
        self,
        first_seconds: float = 0.05,
        cap_seconds: float = 2.0,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._first_seconds = first_seconds
        self._cap_seconds = cap_seconds
        self._draw = draw
        self._next_seconds = first_seconds

    @property
    def is_tried(self) -> bool:
        """Whether the last try failed."""
        return self._next_seconds > self._first_seconds

    def next_seconds(self) -> float:
        """The next pause; each call counts as a failure."""
        ceiling = self._next_seconds
        self._next_seconds = min(self._cap_seconds, ceiling * 2)
        return ceiling * (0.5 + self._draw() / 2)

    async def pause(self) -> None:
        """Wait for the next pause."""
        await asyncio.sleep(self.next_seconds())

    def reset(self) -> None:
        """A try succeeded."""
        self._next_seconds = self._first_seconds
