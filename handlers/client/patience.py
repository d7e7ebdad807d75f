"""How long a client goes on asking a Redis that does not answer: through a failover, not for ever."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from handlers.client.errors import BrokerUnreachable
from handlers.redis_store.faults import explained
from handlers.redis_store.submit.client_access import STORE_ERRORS, TRANSIENT_ERRORS

_FIRST_SECONDS: Final = 2.0
"""For a Redis that never answered: the address is wrong, more likely than that it fails over just now."""
_SHORTEST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.05, 1.0
T = TypeVar("T")


class Patience:
    """Of one client; `seconds` once its Redis has answered. `clock` gives seconds that never go back."""

    def __init__(
        self,
        seconds: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._seconds = seconds
        self._clock = clock
        self._sleep = sleep
        self._draw = draw
        self._is_known = False

    async def insist(self, call: Callable[[bool], Awaitable[T]]) -> T:
        """The answer of `call`, asked again after growing pauses, with jitter; it is told whether it is asked again.

        Raises `BrokerUnreachable` when patience is over, or at once where another try would change nothing.
        """
        until = self._clock() + (self._seconds if self._is_known else min(_FIRST_SECONDS, self._seconds))
        pause, is_repeated = _SHORTEST_PAUSE_SECONDS, False
        while True:
            try:
                answer = await call(is_repeated)
            except TRANSIENT_ERRORS as error:
                last: Exception = error
            except STORE_ERRORS as error:
                raise BrokerUnreachable(f"Redis: {explained(error)}") from error
            else:
                self._is_known = True
                return answer
            is_repeated = True
            if self._clock() < until:
                await self._sleep(pause * (0.5 + self._draw()))
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            # After the pause: a process that was stopped in it would ask when what it sent is remembered no more.
            if self._clock() >= until:
                raise BrokerUnreachable(f"Redis: {explained(last)}") from last
