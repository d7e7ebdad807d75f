"""Load a `.lua` file of this room as a script of one connection."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.commands.core import AsyncScript
from redis.exceptions import NoPermissionError, NoScriptError, ResponseError

BATCH_BYTES: Final = 4_000_000
"""What one command or reply carries at most, unless one item is larger: at 2 MB/s that is the default time limit."""

SCRIPT_BYTES: Final = 1_000_000
"""Bytes of members that one script of a queue moves, unless one member is larger.

A script copies each member about ten times (reply, Lua string, arguments, stored value), and blocks Redis meanwhile.
"""

_INCLUDE: Final = re.compile(r"^-- include (_\w+)\n", re.MULTILINE)


def lua_script(redis: Redis | RedisCluster, name: str) -> AsyncScript:
    """The script `<name>.lua`, called by its hash and loaded where the server does not know it."""
    return redis.register_script(script_text(name))


async def read_only(
    redis: Redis | RedisCluster, script: AsyncScript, keys: list[str], args: list[str]
) -> Any:
    """Run a script that writes nothing, for a user who may only read its keys; servers before 7 know but one way."""
    given: Any = (len(keys), *keys, *args)
    try:
        return await redis.evalsha_ro(script.sha, *given)
    except NoScriptError:
        return await redis.eval_ro(str(script.script), *given)
    except ResponseError as error:
        if "unknown command" not in str(error).lower() and not isinstance(error, NoPermissionError):
            raise
        return await script(keys=keys, args=args)


@cache
def script_text(name: str) -> str:
    """The text of `<name>.lua`, with `-- include _part` replaced by `_part.lua`."""
    return _INCLUDE.sub(lambda found: script_text(found[1]), script_files()[name].read_text(encoding="utf-8"))


@cache
def script_files() -> dict[str, Path]:
    """Every `.lua` file of this package by its name, which is unique among all folders."""
    return {path.stem: path for path in Path(__file__).parent.rglob("*.lua")}
