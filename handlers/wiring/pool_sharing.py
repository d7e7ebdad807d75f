"""Which pools the pollers share, from the settings; one meeting place in Redis for each."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace

from handlers.gates.allowance import WHOLE_POOL, ProcessShare
from handlers.gates.gate import Gate
from handlers.poller.claimer import Claimer
from handlers.poller.pool_share import SHARE_LEASE_SECONDS, PoolSharing
from handlers.redis_store.connection import STORE_FAILURES, Store
from handlers.redis_store.limits.pool_members import RedisPoolSharing
from handlers.settings.config_file import PoolEntry
from handlers.telemetry.logs import Logger


class SharedPools:
    """What of each pool is this poller's. A pool that is not shared is whole, and costs nothing."""

    def __init__(self, redis: Store, log: Logger) -> None:
        self._redis = redis
        self._log = log
        self._poller = secrets.token_hex(8)
        self._sharing: dict[str, PoolSharing] = {}

    def part_of_pool(self, entry: PoolEntry, gates: Sequence[Gate]) -> Callable[[], ProcessShare]:
        """Of the pool's slots: shared where the settings say so; unset, where a gate publishes a budget."""
        is_shared = any(gate.shares_pool() for gate in gates) if entry.shared is None else entry.shared
        if not is_shared:
            return lambda: WHOLE_POOL
        sharing = self._shared(entry.id)
        return lambda: sharing.part

    @property
    def is_used(self) -> bool:
        """Whether any pool is shared."""
        return bool(self._sharing)

    def take_over(self, before: SharedPools) -> None:
        """Be the same poller to the others as `before` was: a second one would halve our part."""
        for pool_id in [one for one in before._sharing if one in self._sharing]:
            self._sharing[pool_id].take_over(before._sharing.pop(pool_id))

    def part_of_queue(self, entry: PoolEntry, gates: Sequence[Gate]) -> Callable[[], ProcessShare]:
        """Of the budget of a queue's own gates. What others use is known of the pool alone."""
        is_shared = any(gate.shares_pool() for gate in gates) and entry.shared is not False
        if not is_shared:
            return lambda: WHOLE_POOL
        sharing = self._shared(entry.id)
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
