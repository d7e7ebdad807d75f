"""Read results: a stream under leases, or waits for single results.

`ResultStream` removes a result when its reader acknowledges it. `OwnResults` waits for results in lists of their own
and leaves them there until the list expires, so that a caller that crashed can wait again. One loop serves all waits of
a client, and one call reads all lists that are due: each after 10 ms at first, later four times per second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Self

from handlers.backoff import Backoff
from handlers.cancellation import end_if_cancelled
from handlers.client.broker import ResultSource
from handlers.client.errors import ClientError, LeaseLost
from handlers.contract.lenient_json import Malformed
from handlers.contract.result import Result, decode_result
from handlers.redis_store.results.results import AckOutcome, HeldResult

POLL_PAUSES = (0.01, 0.25)
"""First and longest pause between two reads of an empty list, in seconds."""
RENEWALS_PER_LEASE = 3
BATCH_RESULTS = 100
HANDLED_AT_ONCE = 1_000
"""Maximum number of leases in one call: a few milliseconds of server time, so that other clients are not delayed."""

log = logging.getLogger(__name__)


class ResultDelivery:
    """One result under a lease. Unless acknowledged, it is delivered again."""

    __slots__ = ("_stream", "claim_key", "result")

    def __init__(self, result: Result, claim_key: bytes, stream: ResultStream) -> None:
        self.result = result
        self.claim_key = claim_key
        self._stream = stream

    async def ack(self) -> None:
        """Remove the result. Raises `LeaseLost` if its lease expired; the result is then delivered again."""
        await self._stream.ack([self])


class ResultStream:
    """Iterates over the results of one source. Use it as a context manager.

    Leases are renewed while it is open. Closing it releases results that were received but not acknowledged. The
    iteration ends after `limit` results, or after `idle_seconds` without a result (0: as soon as no result is left).
    Without these limits it never ends.
    """

    def __init__(
        self,
        source: ResultSource,
        *,
        limit: int | None = None,
        idle_seconds: float | None = None,
        batch: int = BATCH_RESULTS,
    ) -> None:
        self._source = source
        self._left = limit
        self._idle_seconds = idle_seconds
        self._batch = batch
        self._ready: deque[HeldResult] = deque()
        self._held: dict[bytes, None] = {}
        self._heartbeat: asyncio.Task[None] | None = None
        self.undecodable = 0
        """Number of results that could not be decoded. They are delivered again when their lease ends."""

    async def __aenter__(self) -> Self:
        self._heartbeat = asyncio.create_task(self._renew_periodically(), name="result-leases")
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    def __aiter__(self) -> AsyncIterator[ResultDelivery]:
        return self

    async def __anext__(self) -> ResultDelivery:
        """The next result. Raises `StopAsyncIteration` after `limit` or `idle_seconds`."""
        while self._left != 0:
            if (delivery := self._next_ready()) is not None:
                return delivery
            if not await self._fill():
                break
        raise StopAsyncIteration

    def take_ready(self) -> list[ResultDelivery]:
        """The results that have already been received, without waiting."""
        return list(iter(self._next_ready, None))

    def _next_ready(self) -> ResultDelivery | None:
        """The next received result whose lease is held; without it, the result is delivered again."""
        while self._ready and self._left != 0:
            held = self._ready.popleft()
            if held.claim_key in self._held:
                self._left = None if self._left is None else self._left - 1
                return ResultDelivery(decode_result(held.result), held.claim_key, self)
        return None

    async def ack(self, deliveries: Sequence[ResultDelivery]) -> None:
        """Acknowledge many results in one call. Raises `LeaseLost` for the first expired lease."""
        outcomes = await self._source.ack([delivery.claim_key for delivery in deliveries])
        for delivery in deliveries:
            self._held.pop(delivery.claim_key, None)
        for delivery, outcome in zip(deliveries, outcomes, strict=True):
            if outcome is AckOutcome.LOST:
                raise LeaseLost(delivery.result.id)

    async def give_back(self, claim_keys: Sequence[bytes]) -> None:
        """Release results, so that any reader can receive them at once."""
        for key in claim_keys:
            self._held.pop(key, None)
        for start in range(0, len(claim_keys), HANDLED_AT_ONCE):
            await self._source.give_back(claim_keys[start : start + HANDLED_AT_ONCE])

    def let_go(self, claim_key: bytes) -> None:
        """Stop renewing a lease. The result is delivered again when it expires."""
        self._held.pop(claim_key, None)

    async def close(self) -> None:
        """Stop renewing and release the held results."""
        if self._heartbeat is not None:
            self._heartbeat.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._heartbeat
            self._heartbeat = None
        held, self._held = list(self._held), {}
        self._ready.clear()
        with contextlib.suppress(ClientError):  # if the broker is unreachable, the leases expire
            await self._source.give_back(held)

    async def renew(self) -> None:
        """Renew all leases once, and drop the results whose lease was lost."""
        held = list(self._held)
        for start in range(0, len(held), HANDLED_AT_ONCE):
            keys = held[start : start + HANDLED_AT_ONCE]
            for key, is_held in zip(keys, await self._source.renew(keys), strict=True):
                if not is_held:
                    self._held.pop(key, None)

    async def _fill(self) -> bool:
        """Receive the next batch. False if none arrived in time."""
        loop = asyncio.get_running_loop()
        ends_at = None if self._idle_seconds is None else loop.time() + self._idle_seconds
        pauses = Backoff(*POLL_PAUSES)
        while True:
            limit = self._batch if self._left is None else min(self._batch, self._left)
            for held in await self._source.receive(limit):
                self._keep(held)
            end_if_cancelled()
            if self._ready:
                return True
            if ends_at is not None and loop.time() >= ends_at:
                return False
            await pauses.pause()

    def _keep(self, held: HeldResult) -> None:
        if held.is_readable and _is_result(held.result):
            self._held[held.claim_key] = None
            self._ready.append(held)
            return
        # Not acknowledged: when its lease expires it is delivered again, to a reader that may be able to decode it.
        self.undecodable += 1
        log.warning("result not decoded (%d bytes): it is delivered again when its lease ends", len(held.result))

    async def _renew_periodically(self) -> None:
        while True:
            await asyncio.sleep(self._source.lease_seconds / RENEWALS_PER_LEASE)
            try:
                await self.renew()
            except ClientError as error:
                log.warning("leases of %d results not renewed: %s", len(self._held), error)
            end_if_cancelled()


def _is_result(text: bytes) -> bool:
    try:
        return bool(decode_result(text).id)
    except Malformed:
        return False


PEEKED_LISTS = 500
"""Maximum number of lists read in one round trip."""


Peek = Callable[[Sequence[str]], AsyncIterator[tuple[str, bytes | ClientError]]]
"""Reads the newest results of lists; yields the error of a list that cannot be read."""


class _Wait:
    __slots__ = ("due_at", "pauses", "result", "token")

    def __init__(self, token: str, now: float) -> None:
        self.token = token
        self.pauses = Backoff(*POLL_PAUSES)
        self.due_at = now
        self.result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

    def put_off(self, now: float) -> None:
        self.due_at = now + self.pauses.next_seconds()


class OwnResults:
    """Waits for many results with one loop, which runs only during waits."""

    def __init__(self, peek: Peek) -> None:
        self._peek = peek
        self._waits: dict[str, list[_Wait]] = {}
        self._loop_task: asyncio.Task[None] | None = None

    async def wait(self, list_name: str, token: str) -> Result:
        """Wait for a result in `list_name`, of submission `token` (empty: the newest)."""
        wait = _Wait(token, asyncio.get_running_loop().time())
        self._waits.setdefault(list_name, []).append(wait)
        if self._loop_task is None or self._loop_task.done():
            self._loop_task = asyncio.create_task(self._run(), name="own-results")
        try:
            return await wait.result
        finally:
            self._forget(list_name, wait)

    async def close(self) -> None:
        """Stop the loop. Open waits raise `CancelledError`."""
        if self._loop_task is not None:
            self._loop_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loop_task
        for waits in list(self._waits.values()):
            for wait in waits:
                wait.result.cancel()

    def _forget(self, list_name: str, wait: _Wait) -> None:
        waits = self._waits.get(list_name, [])
        if wait in waits:
            waits.remove(wait)
        if not waits:
            self._waits.pop(list_name, None)

    async def _run(self) -> None:
        while self._waits:
            now = asyncio.get_running_loop().time()
            next_at = min(wait.due_at for waits in self._waits.values() for wait in waits)
            if next_at > now:
                await asyncio.sleep(next_at - now)
                continue
            due = [name for name, waits in self._waits.items() if any(w.due_at <= now for w in waits)]
            await self._scan(due[:PEEKED_LISTS])
            end_if_cancelled()

    async def _scan(self, lists: Sequence[str]) -> None:
        now = asyncio.get_running_loop().time()
        for name in lists:
            for wait in self._waits.get(name, []):
                wait.put_off(now)
        try:
            async for name, found in self._peek(lists):
                if isinstance(found, bytes):
                    self._match(name, found)
                else:
                    self._fail(name, found)
        except Exception as error:  # noqa: BLE001 - every error is raised in the waiting callers
            for name in lists:
                self._fail(name, error)
            return
        await asyncio.sleep(0)  # finished waits are removed before the next poll

    def _fail(self, name: str, error: Exception) -> None:
        for wait in self._waits.get(name, []):
            if not wait.result.done():
                wait.result.set_exception(error)

    def _match(self, name: str, text: bytes) -> None:
        waits = [wait for wait in self._waits.get(name, []) if not wait.result.done()]
        if not waits:
            return
        try:
            result = decode_result(text)
        except Malformed as error:
            log.debug("result of %d bytes not decoded, left in its list: %s", len(text), error)
            return
        for wait in waits:
            if not wait.token or not result.request_token or result.request_token == wait.token:
                wait.result.set_result(result)
