"""All that gates keep in one Redis, behind one name."""

from __future__ import annotations

from handlers.redis_store.connection import Store
from handlers.redis_store.limits.leased_rate import RedisLeasedRate
from handlers.redis_store.limits.quota import RedisQuota


class RedisGateStore(RedisQuota, RedisLeasedRate):
    """Quotas, leased rates and budgets at one address: what `handlers.gates` asks a store for."""

    def __init__(self, redis: Store) -> None:
        RedisQuota.__init__(self, redis)
        RedisLeasedRate.__init__(self, redis)
