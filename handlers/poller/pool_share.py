"""Shares the slots of a pool among all pollers that live: each has its part, all together never more than one alone.

A poller that comes waits until the others have heard of it and say what they use; one that dies gives its part
back with its lease, one that stops gives it back at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from handlers.gates.allowance import ProcessShare
from handlers.redis_store.limits.pool_members import RedisPoolSharing
from handlers.telemetry.logs import Logger

SHARE_SECONDS: Final = 0.5
"""How often a poller says that it lives."""
SHARE_LEASE_SECONDS: Final = 5.0
"""How long a part is kept for one that does not say so any more."""
_HEARD_AFTER_TICKS: Final = 2
_NOTHING: Final = ProcessShare(index=0, count=1, is_known=False)


class PoolSharing:
    """One pool of this poller. `part` is what of it is ours now: nothing, until the store has said so."""

    def __init__(self, pool_id: str, store: RedisPoolSharing, log: Logger) -> None:
        self.part = _NOTHING
        self.in_use: Callable[[], int] = lambda: 0
        self._pool_id = pool_id
        self._store = store
        self._log = log
        self._ticks = 0
        self._told = 0

    async def tick(self) -> None:
        """Renew, and learn our part. Raises what the store raises; the last part holds meanwhile."""
        found = await self._store.share(self.in_use())
        # The others refill their slots until they hear of us: before that, what they say they use is too little.
        is_known = found.count == 1 or self._ticks >= _HEARD_AFTER_TICKS
        self.part = ProcessShare(found.place, found.count, found.elsewhere, is_known)
        self._ticks += 1
        if found.count != self._told:
            self._told = found.count
            self._log.info("pool shared", pool=self._pool_id, pollers=found.count, place=found.place)

    def take_over(self, before: PoolSharing) -> None:
        """Have the place and the part of `before`, which renews no more."""
        self.part, self._ticks, self._told = before.part, before._ticks, before._told
        self._store.take_over(before._store)

    async def leave(self) -> None:
        """Give our part back."""
        await self._store.leave()
