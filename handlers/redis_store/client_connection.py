"""A connection for those who queue and read: one pool, no silent repetition.

The library's own retry would send a submission twice when only the reply was lost; whoever calls
repeats by himself, and says so (see `submit.lua`).
"""

from __future__ import annotations

from typing import Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from handlers.contract.errors import InvalidSetting

TRANSIENT_ERRORS: Final = (RedisConnectionError, RedisTimeoutError, OSError)
"""The server was not reached, or its answer was not: worth another try."""

STORE_ERRORS: Final = (*TRANSIENT_ERRORS, RedisError)
"""All that a call may raise."""


def open_redis(url: str, *, timeout_seconds: float = 10.0, max_connections: int = 64) -> Redis:
    """A client for `url` (`redis://`, `rediss://` or `unix://`); connects with the first call."""
    try:
        return Redis.from_url(
            url,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=timeout_seconds,
            socket_connect_timeout=timeout_seconds,
            health_check_interval=30,
            max_connections=max_connections,
        )
    except ValueError as error:
        # The message of the library repeats the URL's scheme only; the URL may hold a password.
        raise InvalidSetting(
            "REDIS_URL", found="no Redis URL", accepted="redis://, rediss:// or unix://"
        ) from error
