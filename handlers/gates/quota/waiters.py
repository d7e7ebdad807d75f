"""Those who wait for room, in the order they came: each release wakes one of them, not all."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable


class Waiters:
    """A queue of waiting coroutines; `clock` gives Unix seconds."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._waiting: deque[asyncio.Future[None]] = deque()

    def __len__(self) -> int:
        return sum(not future.done() for future in self._waiting)

    async def wait(self, until_at: float) -> bool:
        """True when woken, False at `until_at`."""
        left = until_at - self._clock()
        if left <= 0:
            return False
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        try:
            async with asyncio.timeout(left):
                await future
        except TimeoutError:
            return False
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.wake()  # the room that woke us is for the next one
            raise
        finally:
            if future in self._waiting:
                self._waiting.remove(future)
        return True

    def wake(self, count: int = 1) -> None:
        """Wake the `count` that wait longest."""
        while count > 0 and self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
                count -= 1
