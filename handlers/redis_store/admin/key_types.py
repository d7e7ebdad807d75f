"""Whether the keys of a queue are of the type that they must be."""

from __future__ import annotations

from handlers.redis_store.connection import Store
from handlers.redis_store.keys import queue_keys


async def wrong_types(
    redis: Store, queue: str, retry_queue_name: str, result_queue_name: str, *, cluster: bool = False
) -> list[tuple[str, str, str]]:
    """Keys that exist with another type: (key, its type, the wanted type). Raises `STORE_FAILURES`."""
    keys = queue_keys(queue, cluster=cluster)
    wanted = {
        keys.pending: "zset",
        keys.claimed: "hash",
        keys.owners: "hash",
        keys.index: "zset",
        keys.deaths: "hash",
        keys.dead: "hash",
        retry_queue_name: "zset",
        result_queue_name: "list",
    }
    found = {key: (await redis.type(key)) for key in wanted}
    types = {key: kind.decode() if isinstance(kind, bytes) else str(kind) for key, kind in found.items()}
    return [(key, types[key], kind) for key, kind in wanted.items() if types[key] not in (kind, "none")]
