"""A connection for those who queue and read: one server, no silent repetition.

Whoever calls repeats by himself, and says so (see `submit.lua`).
"""

from __future__ import annotations

from typing import Final

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from handlers.contract.errors import InvalidSetting
from handlers.redis_store.connection import STORE_FAILURES, RedisOptions, connect

TRANSIENT_ERRORS: Final = (RedisConnectionError, RedisTimeoutError, OSError)
"""The server was not reached, or its answer was not: worth another try."""

STORE_ERRORS: Final = STORE_FAILURES
"""All that a call may raise."""

CALL_TIMEOUT_SECONDS: Final = 10.0
CONNECTIONS: Final = 64


def open_redis(url: str) -> Redis:
    """A client for `url`; connects with the first call. Raises `InvalidSetting` for a URL that cannot be one."""
    store = connect(RedisOptions(url, timeout_seconds=CALL_TIMEOUT_SECONDS, max_connections=CONNECTIONS))
    if not isinstance(store, Redis):
        # A submission touches keys of several slots in one step, which no cluster offers.
        accepted = "one server or a Sentinel: redis://, rediss://, unix:// or redis+sentinel://"
        raise InvalidSetting("REDIS_URL", found="a cluster", accepted=accepted)
    return store
