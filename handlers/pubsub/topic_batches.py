"""Collect publishes to one topic into batches.

A batch is bounded by time, number, bytes and concurrent calls.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping

from handlers.pubsub.errors import NO_ANSWER, PublishFailed, PubSubFailed


class Waiting:
    """One publish and the future that its caller awaits. `size` is in bytes."""

    __slots__ = ("attributes", "confirmed", "data", "last_failure", "size")

    def __init__(self, data: bytes, attributes: Mapping[str, str], *, size: int) -> None:
        self.data = data
        self.attributes = attributes
        self.size = size
        self.confirmed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.last_failure: PubSubFailed | None = None

    def confirm(self, message_id: str) -> None:
        """Give the caller the broker's message id, if it still waits."""
        if not self.confirmed.done():
            self.confirmed.set_result(message_id)

    def fail(self, error: Exception) -> None:
        """Raise `error` in the caller, if it still waits."""
        if not self.confirmed.done():
            self.confirmed.set_exception(error)


class TopicBatches:
    """Batches of the publishes to one topic.

    `deliver` sends a batch and must confirm or fail each of its publishes. `on_idle` is called when nothing waits or is
    in flight.
    """

    def __init__(
        self,
        deliver: Callable[[list[Waiting]], Awaitable[None]],
        *,
        linger_seconds: float,
        max_batch: int,
        max_batch_bytes: int,
        max_calls: int,
        on_idle: Callable[[], object],
    ) -> None:
        self._deliver = deliver
        self._linger_seconds = linger_seconds
        self._max_batch = max_batch
        self._max_batch_bytes = max_batch_bytes
        self._max_calls = max_calls
        self._on_idle = on_idle
        self._waiting: deque[Waiting] = deque()
        self._waiting_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._calls: dict[asyncio.Task[None], list[Waiting]] = {}

    def add(self, waiting: Waiting) -> None:
        """Add a publish. Its batch is sent when full or when its time is over."""
        self._waiting.append(waiting)
        self._waiting_bytes += waiting.size
        if len(self._waiting) >= self._max_batch or self._waiting_bytes >= self._max_batch_bytes:
            self._send()
        elif self._timer is None and len(self._calls) < self._max_calls:
            self._timer = asyncio.get_running_loop().call_later(self._linger_seconds, self._send)

    async def close(self, grace_seconds: float) -> None:
        """Send all waiting publishes; after `grace_seconds`, fail the unconfirmed ones."""
        self._send()
        try:
            async with asyncio.timeout(grace_seconds):
                while self._calls:
                    await asyncio.wait(self._calls)
        except TimeoutError:
            await self._give_up()

    async def _give_up(self) -> None:
        """Cancel the calls; fail their publishes and the waiting ones.

        The waiting publishes are removed first, so that no new call starts.
        """
        calls = dict(self._calls)
        given_up = [*self._waiting, *(waiting for batch in calls.values() for waiting in batch)]
        self._waiting.clear()
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        for waiting in given_up:
            reason = "not confirmed before the publisher was closed"
            waiting.fail(PublishFailed("publisher", status=NO_ANSWER, reason=reason))

    def _send(self) -> None:
        """Start as many calls as allowed. The end of a call starts the next."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting and len(self._calls) < self._max_calls:
            batch = self._take()
            call = asyncio.ensure_future(self._deliver(batch))
            self._calls[call] = batch
            call.add_done_callback(self._ended)
        self._tell_if_idle()

    def _take(self) -> list[Waiting]:
        """The next batch. A single publish may exceed the byte limit."""
        batch: list[Waiting] = []
        size = 0
        while self._waiting and len(batch) < self._max_batch:
            if batch and size + self._waiting[0].size > self._max_batch_bytes:
                break
            waiting = self._waiting.popleft()
            self._waiting_bytes -= waiting.size
            batch.append(waiting)
            size += waiting.size
        return batch

    def _ended(self, call: asyncio.Task[None]) -> None:
        """Called when a call ends: start the next batch.

        If the call ended with an exception (a defect), its publishes fail.
        """
        batch = self._calls.pop(call)
        error = None if call.cancelled() else call.exception()
        if error is not None:
            for waiting in batch:
                waiting.fail(error if isinstance(error, Exception) else RuntimeError(repr(error)))
        if self._timer is None:  # otherwise the waiting publishes are still within their linger time
            self._send()

    def _tell_if_idle(self) -> None:
        if not self._waiting and not self._calls:
            self._on_idle()
