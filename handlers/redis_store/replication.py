"""Wait (`WAIT`) until enough replicas have a script's writes."""

from __future__ import annotations

from typing import Any

from redis.asyncio.cluster import RedisCluster
from redis.commands.core import AsyncScript
from redis.exceptions import NoPermissionError, NoScriptError

from handlers.redis_store.connection import NotReplicated, Store, executed
from handlers.redis_store.scripts import naming_key


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
