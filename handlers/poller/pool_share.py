"""Shares the slots of a pool among all pollers that live: each has its part, all together never more than one alone.

A poller that comes waits until the others have heard of it and say what they use; one that dies gives its part
back with its lease, one that stops gives it back at once.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from handlers.gates.allowance import WHOLE_POOL, ProcessShare
from handlers.gates.gate import Gate
from handlers.poller.claimer import Claimer
from handlers.redis_store.connection import STORE_FAILURES, Store
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


class SharedPools:
    """What of each pool is this poller's. A pool that is not shared is whole, and costs nothing."""

    def __init__(self, redis: Store, log: Logger) -> None:
        self._redis = redis
        self._log = log
        self._poller = secrets.token_hex(8)
        self._sharing: dict[str, PoolSharing] = {}

    def part_of_pool(
        self, pool_id: str, gates: Sequence[Gate], *, is_shared: bool | None
    ) -> Callable[[], ProcessShare]:
        """Of the pool's slots: shared where the settings say so; unset, where a gate publishes a budget."""
        if is_shared is None:
            is_shared = any(gate.shares_pool() for gate in gates)
        if not is_shared:
            return lambda: WHOLE_POOL
        sharing = self._shared(pool_id)
        return lambda: sharing.part

    @property
    def is_used(self) -> bool:
        """Whether any pool is shared."""
        return bool(self._sharing)

    def take_over(self, before: SharedPools) -> None:
        """Be the same poller to the others as `before` was: a second one would halve our part."""
        for pool_id in [one for one in before._sharing if one in self._sharing]:
            self._sharing[pool_id].take_over(before._sharing.pop(pool_id))

    def part_of_queue(
        self, pool_id: str, gates: Sequence[Gate], *, is_shared: bool | None
    ) -> Callable[[], ProcessShare]:
        """Of the budget of a queue's own gates. What others use is known of the pool alone."""
        if is_shared is False or not any(gate.shares_pool() for gate in gates):
            return lambda: WHOLE_POOL
        sharing = self._shared(pool_id)
        return lambda: replace(sharing.part, elsewhere=0)

    def watch(self, pool: Claimer) -> None:
        """Tell the others what `pool` uses, if it is shared."""
        if pool.pool_id in self._sharing:
            self._sharing[pool.pool_id].in_use = lambda: pool.in_flight

    async def tick(self) -> None:
        """Say that we live, and learn our parts."""
        for sharing in self._sharing.values():
            await sharing.tick()

    async def leave(self) -> None:
        """Give all parts back."""
        for sharing in self._sharing.values():
            with contextlib.suppress(*STORE_FAILURES):  # without Redis the lease ends them
                await sharing.leave()

    def _shared(self, pool_id: str) -> PoolSharing:
        if pool_id not in self._sharing:
            store = RedisPoolSharing(self._redis, pool_id, self._poller, lease_seconds=SHARE_LEASE_SECONDS)
            self._sharing[pool_id] = PoolSharing(pool_id, store, self._log)
        return self._sharing[pool_id]
