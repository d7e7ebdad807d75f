"""Retry Redis calls during a failover, for a limited time."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from handlers.backoff import Backoff
from handlers.cancellation import end_if_cancelled
from handlers.client.errors import BrokerUnreachable
from handlers.redis_store.faults import explained
from handlers.redis_store.submit.client_access import STORE_ERRORS, TRANSIENT_ERRORS

_FIRST_SECONDS: Final = 2.0
"""Time limit until Redis has answered once: a wrong address is more likely than a failover."""
_SHORTEST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.05, 1.0
T = TypeVar("T")


class StoreRetry:
    """Retry policy of one client.

    `seconds` is the time limit once Redis has answered this client. `clock` is monotonic.
    """

    def __init__(
        self,
        seconds: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._seconds = seconds
        self._clock = clock
        self._sleep = sleep
        self._jitter = jitter
        self._is_known = False

    async def run(self, call: Callable[[bool], Awaitable[T]]) -> T:
        """Run `call` until it succeeds, with exponential backoff and jitter.

        The argument of `call` is true for a retry. Raises `BrokerUnreachable` at the time limit, or at once for an
        error that a retry cannot change.
        """
        until = self._clock() + (self._seconds if self._is_known else min(_FIRST_SECONDS, self._seconds))
        backoff = Backoff(_SHORTEST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS, self._jitter)
        is_repeated = False
        while True:
            try:
                answer = await call(is_repeated)
            except TRANSIENT_ERRORS as error:
                end_if_cancelled()  # the library may turn a cancellation into a connection error
                last: Exception = error
            except STORE_ERRORS as error:
                raise BrokerUnreachable(f"Redis: {explained(error)}") from error
            else:
                self._is_known = True
                return answer
            is_repeated = True
            if self._clock() < until:
                await self._sleep(backoff.next_seconds())
            # Checked after the pause too: a suspended process must not retry after Redis has forgotten its first call.
            if self._clock() >= until:
                raise BrokerUnreachable(f"Redis: {explained(last)}") from last
