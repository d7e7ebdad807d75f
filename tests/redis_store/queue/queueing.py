"""A queue for one test: add members, let time pass, read the remaining keys."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as LostConnection

from handlers.redis_store.connection import Store, server_time
from handlers.redis_store.keys import QueueKeys, queue_keys, settled_key
from handlers.redis_store.queue.cancellations import Cancellations
from handlers.redis_store.queue.queue import Ack, Claim, QueueOptions, RedisQueue, Retries
from handlers.redis_store.scripts import lua_script

DEADLINE = 1_999_999_999
LEASE_SECONDS = 1_800.0


class Bench:
    """The queue `requests-…` with its lists; time passes by writing the ends of leases back."""

    def __init__(self, redis: Redis, name: str) -> None:
        self.redis = redis
        self.queue_name = f"requests-{name}"
        self.retries = f"retries-{name}"
        self.results = f"results-{name}"
        self.keys: QueueKeys = queue_keys(self.queue_name)
        self.options = QueueOptions(self.retries, self.results, lease_seconds=LEASE_SECONDS)
        self.queue = self.owner()

    def owner(self, redis: Redis | None = None) -> RedisQueue:
        """Another poller's view of the queue, optionally over its own connection."""
        return RedisQueue(redis or self.redis, self.queue_name, self.options)

    async def put(self, member: bytes, score: float = DEADLINE) -> bytes:
        await self.redis.zadd(self.queue_name, {member: score})
        return member

    async def claimed(self, member: bytes, score: float = DEADLINE) -> Claim:
        await self.put(member, score)
        return (await self.queue.claim(1))[0]

    async def foreign_claim(self, key: str, member: bytes, owner: str = "5f2c-owner") -> None:
        """A claim as another processor writes it, whose lease ended."""
        await self.redis.hset(self.keys.claimed, key, member)
        await self.redis.hset(self.keys.owners, key, owner)
        await self.redis.zadd(self.keys.index, {key: 1})

    async def end_leases(self) -> None:
        await self._move_back(self.keys.index)

    async def make_due(self) -> None:
        await self._move_back(self.retries)

    async def _move_back(self, name: str) -> None:
        for member in cast(list[bytes], await self.redis.zrange(name, 0, -1)):
            await self.redis.zadd(name, {member: 1})

    async def promote(self, limit: int = 100) -> int:
        return await Retries(self.redis, self.retries, self.queue_name).promote(limit)

    async def pending(self) -> list[tuple[bytes, float]]:
        rows = await self.redis.zrange(self.queue_name, 0, -1, withscores=True)
        return cast(list[tuple[bytes, float]], rows)

    async def result_texts(self) -> list[bytes]:
        return cast(list[bytes], await self.redis.lrange(self.results, 0, -1))

    async def now(self) -> float:
        return await server_time(self.redis)

    async def all_keys(self) -> set[str]:
        """All but the memory of batches, which is gone in a minute."""
        names = {key.decode() async for key in self.redis.scan_iter()}
        passing = {name for name in names if name.startswith(settled_key(self.keys, ""))}
        for name in passing:
            left = await self.redis.ttl(name)  # negative, but not -1, if it expired meanwhile
            assert left != -1 and left <= 60
        return names - passing

    async def snapshot(self) -> dict[bytes, bytes | None]:
        """Everything the server holds, to compare byte for byte."""
        return {key: await self.redis.dump(key) async for key in self.redis.scan_iter()}

    def ack_of(self, claim: Claim, result: bytes = b"result", **fields: object) -> Ack:
        given = {
            "result_queue_name": self.results,
            "result_ttl_seconds": None,
            "request_id": "r",
            "request_token": "",
            **fields,
        }
        return Ack(claim, result, **given)  # type: ignore[arg-type]  # the fields a test names


def body(request_id: str, deadline: object = DEADLINE, **fields: object) -> bytes:
    """A bare body."""
    return json.dumps({"id": request_id, "payload": {"n": 1}, "deadline": deadline, **fields}).encode()


def envelope(request_id: str, token: str = "", **internal: object) -> bytes:
    """An envelope, as producers write it."""
    routing = {"request_token": token, **internal} if token else internal
    data = {"id": request_id, "payload": {"n": 1}, "deadline": DEADLINE}
    return json.dumps({"internal": routing, "request_kind": "redis", "data": data}).encode()


class LosingRedis(Redis):
    """A client over the connections of `redis` that loses replies of the script `claim` while `loses_claims`.

    `scripts` counts the calls of `claim` and `take_back`. `after_take_back`, if set, runs once, before the reply of the
    next `take_back` is handed on.
    """

    def __init__(self, redis: Redis) -> None:
        super().__init__(connection_pool=redis.connection_pool)
        self._shas = {lua_script(redis, name).sha: name for name in ("claim", "take_back")}
        self.loses_claims = False
        self.after_take_back: Callable[[], Awaitable[None]] | None = None
        self.scripts: Counter[str | None] = Counter()

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        answer = await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]  # the library's
        script = self._shas.get(str(args[1])) if args[0] == "EVALSHA" else None
        self.scripts[script] += 1
        if script == "claim" and self.loses_claims:
            raise LostConnection("reply lost")
        if script == "take_back" and self.after_take_back is not None:
            run, self.after_take_back = self.after_take_back, None
            await run()
        return answer


async def lose_reply(poller: RedisQueue, redis: LosingRedis) -> None:
    """The server claims for `poller`, which never learns it."""
    redis.loses_claims = True
    with pytest.raises(LostConnection):
        await poller.claim(10)
    redis.loses_claims = False


async def recalled(redis: Store, owner: RedisQueue, cancellations: Cancellations | None = None) -> list[Claim]:
    """Cancelled pending requests, claimed by `owner`; without `cancellations`, all of the last hour."""
    source = cancellations or Cancellations(redis, now=owner.now)
    found = await source.due()
    claims = [claim async for claims in owner.recall(found) for claim in claims]
    source.searched()
    return claims


async def recalled_retries(redis: Store, retries: Retries, cancellations: Cancellations | None = None) -> int:
    """How many cancelled retries were moved back to their queues."""
    source = cancellations or Cancellations(redis)
    moved = await retries.recall(await source.due())
    source.searched()
    return moved
