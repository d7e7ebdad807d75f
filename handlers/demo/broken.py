"""Queue what a careless producer might."""

from __future__ import annotations

from collections.abc import Sequence

from handlers.redis_store.connection import RedisOptions, connect
from handlers.redis_store.queue.depths import queue_member


async def queue_broken(redis_url: str, queue: str, members: Sequence[bytes]) -> None:
    """Put `members` into the sorted set as they are."""
    redis = connect(RedisOptions(redis_url))
    try:
        for member in members:
            await queue_member(redis, queue, member, 1.0)
    finally:
        await redis.aclose()
