"""Share the slots of pools among all live pollers.

A new poller claims nothing until its peers have registered it and reported the slots that they use. The share of a
crashed poller is freed when its registration expires, that of a stopped poller at once.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from handlers.gates.allowance import ProcessShare, whole_pool
from handlers.gates.gate import Gate
from handlers.redis_store.connection import STORE_FAILURES, Store
from handlers.redis_store.limits.limits import RedisPoolSharing
from handlers.telemetry.logs import Logger

SHARE_SECONDS: Final = 0.5
"""Interval at which a poller renews its registration."""
SHARE_LEASE_SECONDS: Final = 5.0
"""A poller that has not renewed its registration for this long loses its share."""
_KNOWN_AFTER_TICKS: Final = 2
_NOTHING: Final = ProcessShare(index=0, count=1, is_known=False)


class PoolSharing:
    """This process's share of one pool; no slots until Redis has answered."""

    def __init__(self, pool_id: str, store: RedisPoolSharing, log: Logger) -> None:
        self.share = _NOTHING
        self._pool_id = pool_id
        self._store = store
        self._log = log
        self._ticks = 0
        self._logged_count = 0

    async def tick(self, in_use: int) -> None:
        """Renew the registration and read the share.

        Raises the store's errors; the last share then stays in force.
        """
        found = await self._store.share(in_use)
        # Peers that do not know this poller yet still use its slots, and their reports may be old.
        is_known = found.count == 1 or self._ticks >= _KNOWN_AFTER_TICKS
        self.share = ProcessShare(found.place, found.count, found.elsewhere, is_known)
        self._ticks += 1
        if found.count != self._logged_count:
            self._logged_count = found.count
            self._log.info("pool shared", pool=self._pool_id, pollers=found.count, index=found.place)

    async def leave(self) -> None:
        """Free the share. Without Redis, it is freed when it expires."""
        with contextlib.suppress(*STORE_FAILURES):
            await self._store.leave()


class PoolShares:
    """This process's shares of all pools. Only shared pools are registered in Redis."""

    def __init__(self, redis: Store, log: Logger) -> None:
        self._redis = redis
        self._log = log
        self._poller = secrets.token_hex(8)
        self._shared: dict[str, PoolSharing] = {}

    def of_pool(self, pool_id: str, *, is_shared: bool) -> Callable[[], ProcessShare]:
        """A function that returns this process's share of the pool's slots."""
        if not is_shared:
            return whole_pool
        sharing = self._joined(pool_id)
        return lambda: sharing.share

    def of_queue(self, pool_id: str, *, is_shared: bool) -> Callable[[], ProcessShare]:
        """A function that returns this process's share of a queue's own budget.

        Slots in use by other processes are not subtracted, because they are known only for whole pools.
        """
        if not is_shared:
            return whole_pool
        sharing = self._joined(pool_id)
        return lambda: replace(sharing.share, elsewhere=0)

    async def tick(self, in_use: Mapping[str, int]) -> None:
        """Renew all registrations and read the shares.

        `in_use` has the number of slots in use by pool id.
        """
        for pool_id, sharing in list(self._shared.items()):
            await sharing.tick(in_use.get(pool_id, 0))

    async def leave(self, kept: Collection[str] = ()) -> None:
        for pool_id in [one for one in self._shared if one not in kept]:
            await self._shared.pop(pool_id).leave()

    def _joined(self, pool_id: str) -> PoolSharing:
        if pool_id not in self._shared:
            store = RedisPoolSharing(self._redis, pool_id, self._poller, lease_seconds=SHARE_LEASE_SECONDS)
            self._shared[pool_id] = PoolSharing(pool_id, store, self._log)
        return self._shared[pool_id]


def is_pool_shared(gates: Sequence[Gate], setting: bool | None) -> bool:
    """Whether pollers share a pool.

    Without a `setting`, they share it if one of its gates publishes a budget.
    """
    return any(gate.shares_pool() for gate in gates) if setting is None else setting
