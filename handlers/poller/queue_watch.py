"""Poll all idle queues and the retry set with one command.

A pool that found nothing to claim waits here. Each poll interval, one `EXISTS` checks all keys. After 30 seconds
without a request the interval grows to 100 ms, and the process subscribes to the signal that our clients publish when
they submit, so that their requests are still claimed at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from typing import Final

from handlers.cancellation import end_if_cancelled
from handlers.redis_store.connection import STORE_FAILURES, STORE_REFUSALS
from handlers.redis_store.faults import StoreBackoff, explained
from handlers.telemetry.logs import Logger

SILENT_SECONDS: Final = 30.0
"""Time without a request after which polls become rare and the process subscribes to the signal."""
SILENT_POLL_SECONDS: Final = 0.1
SECONDS_PER_KEY: Final = 50e-6
"""Shortest pause after a poll, per key: bounds the CPU time for thousands of queues, here and on the server."""
SILENT_FACTOR: Final = 2
"""Factor on that pause during a silence. With 10,000 queues, a request without a signal then waits up to a second."""
PROMOTE_SECONDS: Final = 0.1
"""Interval at which due retries are moved back to their queues."""
RESUBSCRIBE_SECONDS: Final = 30.0

FindExisting = Callable[[Sequence[str]], Awaitable[Collection[str]]]
"""Returns the given keys that exist."""


class Waiter:
    """A pool that waits until one of its queues may have requests."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self._found: list[str] = []
        self._ended = asyncio.Event()

    def release(self, found: Sequence[str]) -> None:
        """End the wait: these queues may have requests."""
        self._found = list(found)
        self._ended.set()

    async def found(self, timeout_seconds: float | None) -> list[str]:
        """The queues that may have requests; empty after the timeout."""
        if timeout_seconds is None:
            await self._ended.wait()
        else:
            await wait_at_most(self._ended, timeout_seconds)
        return self._found


class QueueWatch:
    """Polls the queues for all waiting pools of one process.

    `find_existing` returns the keys that exist. `retry_keys` are polled too; `promote` moves due retries to their
    queues and returns their number. `signals` yields the queue names in producers' signals.
    """

    def __init__(
        self,
        find_existing: FindExisting,
        log: Logger,
        *,
        poll_interval_seconds: float,
        retry_keys: Sequence[str] = (),
        promote: Callable[[], Awaitable[int]] | None = None,
        signals: Callable[[], AsyncIterator[str]] | None = None,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[asyncio.Event, float], Awaitable[None]] | None = None,
    ) -> None:
        self._find_existing = find_existing
        self._log = log
        self._poll_interval_seconds = poll_interval_seconds
        self._retry_keys = list(retry_keys)
        self._promote = promote
        self._signals = signals
        self._clock = clock
        self._wait = pause or wait_at_most
        self._waiters: set[Waiter] = set()
        self._wake = asyncio.Event()
        self._active_at = clock()
        self._promoted_at = -PROMOTE_SECONDS
        self._backoff = StoreBackoff("queue watch", log)
        self._promotion = StoreBackoff("promoting", log)
        self._subscription: asyncio.Task[None] | None = None
        self._empty: frozenset[str] = frozenset()

    @property
    def is_silent(self) -> bool:
        """Whether no request was found for `SILENT_SECONDS`."""
        return self._clock() - self._active_at >= SILENT_SECONDS

    @property
    def refusal(self) -> str:
        """Why Redis refuses polls or promotions, with a fix; empty if it does not."""
        return self._backoff.refusal or self._promotion.refusal

    def active(self) -> None:
        """Note that a request was claimed, which ends the silence."""
        self._active_at = self._clock()

    def are_empty(self, keys: Collection[str]) -> bool:
        """Whether the watch is silent and last found none of these keys."""
        return self.is_silent and self._empty.issuperset(keys)

    async def wait(self, waiter: Waiter, timeout_seconds: float | None = None) -> list[str]:
        """Wait for queues that may have requests; empty after the timeout."""
        self._waiters.add(waiter)
        self._wake.set()
        try:
            return await waiter.found(timeout_seconds)
        finally:
            self._waiters.discard(waiter)

    async def filled(self, names: Sequence[str]) -> Collection[str]:
        return await self._find_existing(names) if len(names) > 1 else names

    async def run(self) -> None:
        """Poll until cancelled. If Redis fails, release waiting pools, so that they see the failure."""
        try:
            while True:
                self._wake.clear()
                key_count = 0
                try:
                    key_count = await self._scan()
                except (
                    *STORE_FAILURES,
                    MemoryError,
                ) as error:  # after a reply too large for memory, try again
                    end_if_cancelled()
                    self._empty = frozenset()
                    seconds = self._backoff.failed(error)
                    self._release(lambda waiter: waiter.names)
                    await asyncio.sleep(seconds)
                else:
                    self._backoff.reset()
                    end_if_cancelled()
                    await self._pause(key_count)
                self._subscribe_while_silent()
        finally:
            if self._subscription is not None:
                self._subscription.cancel()
                await asyncio.gather(self._subscription, return_exceptions=True)

    async def _scan(self) -> int:
        """Poll once and promote due retries; return the number of keys polled."""
        names = list(dict.fromkeys(name for waiter in self._waiters for name in waiter.names))
        is_promoting = self._promote is not None and self._clock() - self._promoted_at >= PROMOTE_SECONDS
        keys = [*names, *(self._retry_keys if is_promoting else ())]
        if not keys:
            return 0
        found = set(await self._find_existing(keys))
        # Not every poll includes the retry set; otherwise the result of its last poll holds.
        self._empty = self._empty.intersection(self._retry_keys).union(keys) if not found else frozenset()
        if is_promoting:
            self._promoted_at = self._clock()
            if await self._has_promoted(found):
                self._wake.set()  # requests moved to their queues: poll again at once
        self._release(lambda waiter: [name for name in waiter.names if name in found])
        return len(keys)

    async def _has_promoted(self, found: Collection[str]) -> bool:
        """Promote due retries if the retry set exists. If Redis refuses that, the next try waits and polls continue."""
        count = 0
        try:
            if self._promote is not None and not set(self._retry_keys).isdisjoint(found):
                count = await self._promote()
        except STORE_REFUSALS as error:
            end_if_cancelled()
            self._promoted_at += self._promotion.failed(error)
        else:
            self._promotion.reset()
        return count > 0

    def _release(self, names_of: Callable[[Waiter], Sequence[str]]) -> None:
        for waiter in list(self._waiters):
            if names := names_of(waiter):
                self._active_at = self._clock()
                self._waiters.discard(waiter)
                waiter.release(names)

    async def _pause(self, key_count: int) -> None:
        """Wait for the next poll. A new waiter ends the pause unless there are many keys."""
        least = SECONDS_PER_KEY * key_count * (SILENT_FACTOR if self.is_silent else 1)
        seconds = self._poll_interval_seconds if self._waiters else PROMOTE_SECONDS
        if self.is_silent:
            seconds = max(seconds, SILENT_POLL_SECONDS)
        if least > self._poll_interval_seconds:
            await self._wait(asyncio.Event(), max(least, seconds))
        else:
            await self._wait(self._wake, seconds)

    def _subscribe_while_silent(self) -> None:
        if self._signals is None:
            return
        if self.is_silent and (self._subscription is None or self._subscription.done()):
            self._subscription = asyncio.create_task(self._follow_signals(self._signals))
        elif not self.is_silent and self._subscription is not None:
            self._subscription.cancel()
            self._subscription = None

    async def _follow_signals(self, signals: Callable[[], AsyncIterator[str]]) -> None:
        """Release pools whose queues a signal names.

        Without the right to subscribe, polling alone finds requests.
        """
        while True:
            try:
                async for name in signals():
                    self._release(lambda waiter, name=name: [name] if name in waiter.names else [])  # type: ignore[misc]  # a default binds it now
            except (*STORE_FAILURES, MemoryError) as error:  # after a reply too large for memory, try again
                end_if_cancelled()
                self._log.debug("wake-up subscription unavailable", error=explained(error))
            await asyncio.sleep(RESUBSCRIBE_SECONDS)


async def wait_at_most(event: asyncio.Event, seconds: float) -> None:
    """Wait for the event, at most `seconds`."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
