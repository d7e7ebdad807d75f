"""Open queues, retry sets and submissions, on one server or a cluster.

The modules for a cluster are imported when one is opened.
"""

from __future__ import annotations

from typing import Final

from redis.asyncio.cluster import RedisCluster

from handlers.clock import FollowedClock
from handlers.redis_store.connection import Store
from handlers.redis_store.queue.queue import QueueOptions, RedisQueue, Retries
from handlers.redis_store.scripts import Replication
from handlers.redis_store.submit.submissions import Submissions

_WAIT_TIMEOUT_MS: Final = 1_000


def open_queue(redis: Store, name: str, options: QueueOptions, clock: FollowedClock | None = None) -> RedisQueue:
    """The queue `name`; `clock` follows the server's time."""
    if options.cluster:
        from handlers.redis_store.cluster.queue import ClusterQueue

        return ClusterQueue(redis, name, options, clock)
    return RedisQueue(redis, name, options, clock)


def open_retries(redis: Store, default_queue: str, options: QueueOptions) -> Retries:
    """The retry set of `options`. Members that do not name a queue return to `default_queue`."""
    if options.cluster:
        from handlers.redis_store.cluster.queue import ClusterRetries

        return ClusterRetries(redis, options.retry_queue_name, default_queue, options.wait_replicas)
    return Retries(redis, options.retry_queue_name, default_queue)


def open_submissions(redis: Store, wait_replicas: int = 0) -> Submissions:
    """Submissions to one Redis. Each succeeds once `wait_replicas` replicas have it."""
    replication = Replication(redis, wait_replicas, _WAIT_TIMEOUT_MS)
    if isinstance(redis, RedisCluster):
        from handlers.redis_store.cluster.submissions import ClusterSubmissions

        return ClusterSubmissions(redis, replication)
    return Submissions(redis, replication)
