"""Whether our user may do with the keys of a queue what a poller does, before a request depends on it."""

from __future__ import annotations

from handlers.redis_store.connection import Store, flat
from handlers.redis_store.keys import PAYLOAD_PREFIX, queue_keys
from handlers.redis_store.lua_script import lua_script
from handlers.redis_store.submission_keys import CANCELLATIONS


async def refused_commands(
    redis: Store, queue: str, retry_queue_name: str, result_queue_name: str, *, cluster: bool = False
) -> list[str] | None:
    """Commands and keys that the server would refuse; None where it cannot tell (before Redis 7).

    Raises one of `STORE_FAILURES`.
    """
    keys = queue_keys(queue, cluster=cluster)
    needed = [
        (keys.pending, "ZPOPMIN", "1", ""),
        (keys.pending, "ZADD", "1", "x"),
        (keys.pending, "ZREM", "x", ""),
        *((key, "HSET", "x", "x") for key in (keys.claimed, keys.owners, keys.dead)),
        *((key, "HDEL", "x", "") for key in (keys.claimed, keys.owners, keys.deaths)),
        (keys.deaths, "HINCRBY", "x", "1"),
        (keys.index, "ZADD", "1", "x"),
        (keys.index, "ZREM", "x", ""),
        (retry_queue_name, "ZADD", "1", "x"),
        (result_queue_name, "LPUSH", "x", ""),
        (result_queue_name, "EXPIRE", "1", ""),
        *((name, "GET", "", "") for name in ("request-active:x", "request-cancel:x", f"{PAYLOAD_PREFIX}x")),
        (CANCELLATIONS, "ZRANGEBYSCORE", "0", "1"),
        *((name, "DEL", "", "") for name in ("request-active:x", "request-cancel:x", f"{PAYLOAD_PREFIX}x")),
    ]
    script = lua_script(redis, "check_rights")
    groups = [[row] for row in needed] if cluster else [needed]  # a cluster's script stays in one slot
    refused: list[str] = []
    for rows in groups:
        answer = await script(keys=[row[0] for row in rows], args=flat([row[1:] for row in rows]))
        if answer is None:
            return None
        refused += [command.decode() for command in answer]
    return refused
