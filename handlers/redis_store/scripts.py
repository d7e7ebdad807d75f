"""Load `.lua` files as scripts; wait (`WAIT`) until replicas have their writes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar

from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.commands.core import AsyncScript
from redis.exceptions import NoPermissionError, NoScriptError, ResponseError

from handlers.redis_store.connection import NotReplicated, Store, executed

BATCH_BYTES: Final = 4_000_000
"""Maximum bytes of one command or reply, unless one item is larger. It takes two seconds at 2 MB/s."""

SCRIPT_BYTES: Final = 1_000_000
"""Maximum bytes of members that one script of a queue moves, unless one member is larger.

A script copies each member about ten times (reply, Lua string, arguments, stored value), and blocks Redis meanwhile.
"""

_KEY_REFUSED: Final = "permissions to access"
_INCLUDE: Final = re.compile(r"^-- include (_\w+)\n", re.MULTILINE)


T = TypeVar("T")


def in_batches(items: Iterable[T], size_of: Callable[[T], int], most_bytes: int) -> Iterator[list[T]]:
    """Split items into batches of at most `most_bytes`, or one larger item."""
    batch: list[T] = []
    size = 0
    for item in items:
        if batch and size + size_of(item) > most_bytes:
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += size_of(item)
    if batch:
        yield batch


class Script(AsyncScript):
    """A script. If the ACL refuses one of its keys, the error names the key."""

    async def __call__(
        self, keys: Sequence[Any] | None = None, args: Iterable[Any] | None = None, client: Any = None
    ) -> Any:
        try:
            return await super().__call__(keys, args, client)
        except NoPermissionError as error:
            raise await naming_key(client or self.registered_client, keys or (), error) from error


def lua_script(redis: Redis | RedisCluster, name: str) -> AsyncScript:
    """The script `<name>.lua`, called by hash, loaded if missing."""
    return Script(redis, script_text(name))


async def naming_key(redis: Redis | RedisCluster, keys: Sequence[Any], error: NoPermissionError) -> NoPermissionError:
    """Add the name of the key that the ACL refused to `error`. Servers do not name it."""
    for key in keys if _KEY_REFUSED in str(error) else ():
        try:
            await redis.exists(key)
        except NoPermissionError as refused:
            if _KEY_REFUSED in str(refused):
                return NoPermissionError(f"{error}: {key}")
    return error


async def read_only(redis: Redis | RedisCluster, script: AsyncScript, keys: list[str], args: list[str]) -> Any:
    """Run a script that writes nothing with `EVALSHA_RO` or `EVAL_RO`.

    Before Redis 7, which added them, or if the ACL refuses them, it runs as any other script.
    """
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
    """Every `.lua` file of this package by name. Names are unique among all folders."""
    return {path.stem: path for path in Path(__file__).parent.rglob("*.lua")}


class Replication:
    """Runs scripts and waits until `replicas` replicas have their writes.

    If too few have them within `timeout_ms`, `run` raises `NotReplicated` and `is_complete` becomes false. Run the
    script again to continue waiting. With 0 `replicas` it does not wait.
    """

    def __init__(self, redis: Store, replicas: int, timeout_ms: int) -> None:
        self._redis = redis
        self._replicas = replicas
        self._timeout_ms = timeout_ms
        self.is_complete = True

    @property
    def missing(self) -> NotReplicated:
        """The error to raise while `is_complete` is false."""
        return NotReplicated(self._replicas)

    async def run(self, script: AsyncScript, keys: list[str], args: list[Any]) -> Any:
        """Run the script and return its answer. Raises one of `STORE_FAILURES`."""
        if not self._replicas:
            return await script(keys=keys, args=args)
        try:
            try:
                answer, replicas = await self._run_and_wait(script, keys, args)
            except NoScriptError:
                await self._redis.script_load(script.script)
                answer, replicas = await self._run_and_wait(script, keys, args)
        except NoPermissionError as error:
            raise await naming_key(self._redis, keys, error) from error
        self.is_complete = replicas >= self._replicas
        if not self.is_complete:
            raise NotReplicated(self._replicas, replicas)
        return answer

    async def execute(self, pipeline: Any, keys: list[str]) -> list[Any]:
        """Run a pipeline and return its answers. In a cluster, wait for the replicas of `keys`."""
        if not self._replicas or not keys or not isinstance(self._redis, RedisCluster):
            return await executed(self._redis, pipeline)
        await self._redis.initialize()  # the first call discovers the nodes, later ones do nothing
        nodes = {node.name: node for node in (self._redis.get_node_from_key(key) for key in keys) if node}
        for node in nodes.values():
            pipeline.execute_command("WAIT", self._replicas, self._timeout_ms, target_nodes=node)
        answers = await executed(self._redis, pipeline)
        fewest = min(int(found) for found in answers[len(answers) - len(nodes) :])
        if fewest < self._replicas:
            raise NotReplicated(self._replicas, fewest)
        return answers[: len(answers) - len(nodes)]

    async def _run_and_wait(self, script: AsyncScript, keys: list[str], args: list[Any]) -> tuple[Any, int]:
        # WAIT waits only for the writes of its connection. A pipeline uses one (in a cluster: one to each node).
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.execute_command("EVALSHA", script.sha, len(keys), *keys, *args)
        wait = ("WAIT", self._replicas, self._timeout_ms)
        if isinstance(self._redis, RedisCluster):
            await self._redis.initialize()  # see `execute`
            pipeline.execute_command(*wait, target_nodes=self._redis.get_node_from_key(keys[0]))
        else:
            pipeline.execute_command(*wait)
        answer, replicas = await executed(self._redis, pipeline)
        return answer, int(replicas)
