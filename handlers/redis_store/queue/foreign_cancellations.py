"""Cancellations of producers that know nothing of our list: only their `request-cancel:<id>` tells.

Whoever holds or claims such a request sees that key by itself. What waits in a long queue, or for a retry, is found
here: the names of all keys are gone through, and what is cancelled and live is put into the list, which every poller
reads. One poller of all does it at a time, and none spends more than a small part of the server's time on it.
"""

from __future__ import annotations

import time
from typing import Any, Final

from redis.exceptions import NoPermissionError

from handlers.redis_store.connection import Store, executed
from handlers.redis_store.scripts import lua_script
from handlers.redis_store.submit.submission_keys import CANCELLATIONS, active_key, cancel_key

SWEPT: Final = "{async-processor}:cancellations-swept"
"""STRING: there while nobody needs to look again."""

_LEAST_PAUSE_SECONDS: Final = 0.4
_PAUSE_FACTOR: Final = 20
"""How much longer than a sweep the pause behind it is; the shorter of the last two counts, since other work of this
poller may have held one up."""
_SCAN_COUNT: Final = 1_000
_BATCH: Final = 500


class ForeignCancellations:
    """One poller's sweeps; `is_allowed` is false once the server has said that its user may not list keys."""

    def __init__(self, redis: Store) -> None:
        self._redis = redis
        self._note = lua_script(redis, "note_cancelled")
        self._pause_seconds = _LEAST_PAUSE_SECONDS
        self._took_seconds = 0.0
        self.is_allowed = True

    async def sweep(self) -> int:
        """Put into the list what is not there; returns how many. Raises one of `STORE_FAILURES`."""
        if not self.is_allowed:
            return 0
        try:
            return await self._swept()
        except NoPermissionError:
            self.is_allowed = False
            return 0

    async def _swept(self) -> int:
        pause_ms = round(1_000 * self._pause_seconds)
        if not await self._redis.set(SWEPT, "1", nx=True, px=pause_ms):
            return 0
        began_at = time.monotonic()
        noted = await self._noted()
        before, self._took_seconds = self._took_seconds, time.monotonic() - began_at
        self._pause_seconds = max(_LEAST_PAUSE_SECONDS, _PAUSE_FACTOR * min(before, self._took_seconds))
        return noted

    async def _noted(self) -> int:
        prefix = cancel_key("").encode()
        noted, ids = 0, list[bytes]()
        async for key in self._redis.scan_iter(match=cancel_key("*"), count=_SCAN_COUNT):
            ids.append(key.removeprefix(prefix))
            if len(ids) == _BATCH:
                noted += await self._note_live(ids)
                ids = []
        return noted + (await self._note_live(ids) if ids else 0)

    async def _note_live(self, ids: list[bytes]) -> int:
        """Of these, what is cancelled by the token that is live; others are over, or another submission's."""
        pipeline: Any = self._redis.pipeline(transaction=False)
        for request_id in ids:
            pipeline.get(cancel_key("").encode() + request_id)
            pipeline.get(active_key("").encode() + request_id)
            pipeline.pttl(active_key("").encode() + request_id)
        answers = await executed(self._redis, pipeline, raise_on_error=False)
        rows: list[bytes | int] = []
        for request_id, cancelled, live, life_ms in zip(
            ids, answers[::3], answers[1::3], answers[2::3], strict=True
        ):
            if live and cancelled == live and life_ms > 0:
                rows += [life_ms, request_id + b"\0" + live]
        return int(await self._note(keys=[CANCELLATIONS], args=[1, *rows])) if rows else 0
