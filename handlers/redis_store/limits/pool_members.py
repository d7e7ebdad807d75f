"""Members of a shared pool. Each poller reports its slots in use under a lease."""

from __future__ import annotations

import msgspec

from handlers.redis_store.connection import Store
from handlers.redis_store.scripts import lua_script


class PoolIndex(msgspec.Struct, frozen=True):
    """This poller's index `place` (from 0) among `count` pollers. The others use `elsewhere` slots."""

    place: int
    count: int
    elsewhere: int


class RedisPoolSharing:
    """One poller's membership in a pool. Raises one of `STORE_FAILURES` if Redis does not answer."""

    def __init__(self, redis: Store, pool_id: str, poller: str, *, lease_seconds: float) -> None:
        # One hash tag for both keys, so that a cluster keeps them on one node.
        tag = f"{{async-processor:pool:{pool_id}}}"
        self._keys = [f"{tag}:pollers", f"{tag}:in-use"]
        self._poller = poller
        self._lease_seconds = lease_seconds
        self._share = lua_script(redis, "share_pool")
        self._leave = lua_script(redis, "leave_pool")

    async def share(self, in_use: int) -> PoolIndex:
        """Renew the lease, report slots in use, and return this poller's share."""
        place, count, elsewhere = await self._share(self._keys, [self._poller, in_use, self._lease_seconds])
        return PoolIndex(int(place), int(count), int(elsewhere))

    async def leave(self) -> None:
        """Leave the pool. The others may use this poller's share at once."""
        await self._leave(self._keys, [self._poller])
