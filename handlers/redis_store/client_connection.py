"""A connection for those who queue and read: no silent repetition.

Whoever calls repeats by himself, and says so (see `submit.lua`).
"""

from __future__ import annotations

from typing import Final

from redis.asyncio.cluster import RedisCluster
from redis.exceptions import ClusterDownError, ReadOnlyError, RedisClusterException
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from handlers.redis_store.cluster_submissions import ClusterSubmissions
from handlers.redis_store.connection import STORE_FAILURES, NotReplicated, RedisOptions, Store, connect
from handlers.redis_store.replication import Replication
from handlers.redis_store.submissions import Submissions

TRANSIENT_ERRORS: Final = (
    NotReplicated,
    RedisConnectionError,
    RedisTimeoutError,
    OSError,
    ReadOnlyError,
    ClusterDownError,
    RedisClusterException,
)
"""The server was not reached, or its answer was not, or it is failing over: worth another try."""

STORE_ERRORS: Final = STORE_FAILURES
"""All that a call may raise."""

CALL_TIMEOUT_SECONDS: Final = 10.0
CONNECTIONS: Final = 64
_WAIT_TIMEOUT_MS: Final = 1_000


def open_redis(url: str) -> Store:
    """A client for `url`; connects with the first call. Raises `InvalidSetting` for a URL that cannot be one."""
    return connect(RedisOptions(url, timeout_seconds=CALL_TIMEOUT_SECONDS, max_connections=CONNECTIONS))


def open_submissions(redis: Store, wait_replicas: int = 0) -> Submissions:
    """The producer's side of one server, or of a cluster; submissions count once `wait_replicas` replicas have them."""
    replication = Replication(redis, wait_replicas, _WAIT_TIMEOUT_MS)
    kind = ClusterSubmissions if isinstance(redis, RedisCluster) else Submissions
    return kind(redis, replication)
