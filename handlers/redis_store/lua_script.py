"""Load a `.lua` file of this room as a script of one connection."""

from __future__ import annotations

from importlib.resources import files

from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.commands.core import AsyncScript


def lua_script(redis: Redis | RedisCluster, name: str) -> AsyncScript:
    """The script `lua/<name>.lua`, called by its hash and loaded where the server does not know it."""
    text = files("handlers.redis_store").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
    return redis.register_script(text)
