"""Wait for results in lists of their own: one polling loop for all waits of a client.

Results are read and left in their lists until those expire, so a caller that crashed can wait again. One round
trip reads all lists that are due. A new wait is polled after 10 ms, an old one four times a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence

from handlers.cancellation import end_if_cancelled
from handlers.contract.lenient_json import Malformed
from handlers.contract.result import Result, decode_result

FIRST_INTERVAL_SECONDS = 0.01
LAST_INTERVAL_SECONDS = 0.25
GROWTH = 1.3
PEEKED_LISTS = 500
"""Lists read in one round trip."""

log = logging.getLogger(__name__)

Peek = Callable[[Sequence[str]], AsyncIterator[tuple[str, bytes]]]


class _Wait:
    __slots__ = ("due_at", "interval_seconds", "result", "token")

    def __init__(self, token: str, now: float) -> None:
        self.token = token
        self.interval_seconds = FIRST_INTERVAL_SECONDS
        self.due_at = now
        self.result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

    def put_off(self, now: float) -> None:
        self.due_at = now + self.interval_seconds
        self.interval_seconds = min(LAST_INTERVAL_SECONDS, self.interval_seconds * GROWTH)


class OwnResults:
    """Waits for many results with one loop, which runs only during waits."""

    def __init__(self, peek: Peek) -> None:
        self._peek = peek
        self._waits: dict[str, list[_Wait]] = {}
        self._loop_task: asyncio.Task[None] | None = None

    async def wait(self, list_name: str, token: str) -> Result:
        """The result in `list_name`, of the submission `token` (empty: whichever is newest)."""
        wait = _Wait(token, asyncio.get_running_loop().time())
        self._waits.setdefault(list_name, []).append(wait)
        if self._loop_task is None or self._loop_task.done():
            self._loop_task = asyncio.create_task(self._run(), name="own-results")
        try:
            return await wait.result
        finally:
            self._forget(list_name, wait)

    async def close(self) -> None:
        """Stop the loop; open waits raise `CancelledError`."""
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
            await self._look(due[:PEEKED_LISTS])
            end_if_cancelled()

    async def _look(self, lists: Sequence[str]) -> None:
        now = asyncio.get_running_loop().time()
        for name in lists:
            for wait in self._waits.get(name, []):
                wait.put_off(now)
        try:
            async for name, text in self._peek(lists):
                self._match(name, text)
        except Exception as error:  # noqa: BLE001 - every error is raised in the waiting callers
            for name in lists:
                for wait in self._waits.get(name, []):
                    if not wait.result.done():
                        wait.result.set_exception(error)
            return
        await asyncio.sleep(0)  # lets finished waits leave before the next poll

    def _match(self, name: str, text: bytes) -> None:
        """Hand a result to those who wait for it."""
        waits = [wait for wait in self._waits.get(name, []) if not wait.result.done()]
        if not waits:
            return
        try:
            result = decode_result(text)
        except Malformed as error:
            log.debug("result of %d bytes not decodable, left in its list: %s", len(text), error)
            return
        for wait in waits:
            if not wait.token or not result.request_token or result.request_token == wait.token:
                wait.result.set_result(result)
