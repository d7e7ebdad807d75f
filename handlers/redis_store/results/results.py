"""Read a result list: receive under a lease, renew, acknowledge, return, peek.

This is the durable result protocol: a result that is received but not acknowledged returns to the list when its lease
ends, so a crash of its reader loses nothing. Readers that `RPOP` the same list still work.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from enum import Enum
from typing import Any

import msgspec
from redis.asyncio.cluster import RedisCluster
from redis.exceptions import ResponseError

from handlers.redis_store.connection import Store, executed
from handlers.redis_store.faults import refusal
from handlers.redis_store.keys import result_claim_keys
from handlers.redis_store.scripts import BATCH_BYTES, lua_script, read_only

PEEKED_RESULTS = 10
"""Maximum number of results that `peek_results` reads from one list; a per-request reply list holds fewer."""


class HeldResult(msgspec.Struct, frozen=True):
    """A result under a lease: its claim key and its JSON."""

    claim_key: bytes
    result: bytes

    @property
    def is_readable(self) -> bool:
        """Whether the list item has the form of a result. An unreadable item returns when its lease ends."""
        return not self.claim_key.startswith(b"\0")


class AckOutcome(Enum):
    """The outcome of an acknowledgement."""

    LOST = 0
    """The lease had ended: the result is delivered again."""
    DONE = 1
    REPEATED = 2
    """It was acknowledged before."""


class Results:
    """A reader of the list `name`, identified by its `owner` token."""

    def __init__(self, redis: Store, name: str, *, owner: str, lease_ms: int, tombstone_ms: int) -> None:
        self.name = name
        self._redis = redis
        self._owner = owner
        self._lease_ms = lease_ms
        self._tombstone_ms = tombstone_ms
        self._claimed, self._owners, self._index, self._tombstones = result_claim_keys(
            name, cluster=isinstance(redis, RedisCluster)
        )
        self._receive = lua_script(redis, "receive_results")
        self._renew = lua_script(redis, "renew_results")
        self._ack = lua_script(redis, "ack_results")
        self._return = lua_script(redis, "return_results")

    async def receive(self, limit: int) -> list[HeldResult]:
        """Take at most `limit` of the oldest results under a lease.

        Returns none if the list is empty. Together they have at most `BATCH_BYTES`, unless the first is larger.
        """
        keys = [self.name, self._claimed, self._owners, self._index, self._tombstones]
        answer = await self._receive(keys, [self._owner, self._lease_ms, limit, BATCH_BYTES, secrets.token_hex(8)])
        return [HeldResult(key, result) for key, result in zip(answer[::2], answer[1::2], strict=True)]

    async def renew(self, claim_keys: Sequence[bytes]) -> list[bool]:
        """Extend leases. Returns for each whether it is still held."""
        if not claim_keys:
            return []
        answer: list[int] = await self._renew([self._owners, self._index], [self._owner, self._lease_ms, *claim_keys])
        return [bool(held) for held in answer]

    async def ack(self, claim_keys: Sequence[bytes]) -> list[AckOutcome]:
        """Drop results that their reader has stored."""
        if not claim_keys:
            return []
        keys = [self._claimed, self._owners, self._index, self._tombstones]
        answer: list[int] = await self._ack(keys, [self._owner, self._tombstone_ms, *claim_keys])
        return [AckOutcome(outcome) for outcome in answer]

    async def give_back(self, claim_keys: Sequence[bytes]) -> int:
        """Release held results to the list; `claim_keys` are oldest first. Returns how many."""
        if not claim_keys:
            return 0
        keys = [self.name, self._claimed, self._owners, self._index]
        given, left = 0, len(claim_keys)
        while left:
            count, left = await self._return(keys, [self._owner, BATCH_BYTES, *claim_keys[:left]])
            given += int(count)
        return given

    async def depth(self) -> int:
        """The number of results in the list, without those under a lease."""
        count: Any = await self._redis.llen(self.name)
        return int(count)

    async def delete(self) -> None:
        """Delete the list and its other keys. Only for a list that has one reader."""
        for key in (self.name, self._claimed, self._owners, self._index, self._tombstones):
            await self._redis.unlink(key)


async def peek_results(redis: Store, lists: Sequence[str]) -> AsyncIterator[tuple[str, bytes | ResponseError]]:
    """Yield (list name, result) for the newest results of many lists.

    They stay in their lists. Small results of all lists are read in one round trip, larger ones in one each, so that no
    reply exceeds a few MB or one result. A list that cannot be read (a key of another type, a missing right) yields its
    error, and the others are read.
    """
    counting = redis.pipeline(transaction=False)
    for name in lists:
        counting.llen(name)
    counts, faults = _parted(lists, await executed(redis, counting, raise_on_error=False))
    for fault in faults:
        yield fault
    filled = [name for name, count in counts if count]
    if not filled:
        return
    script = str(lua_script(redis, "newest_results").script)  # by its text: pipelines cannot load a missing script
    reading = redis.pipeline(transaction=False)
    for name in filled:
        reading.eval(script, 1, name, PEEKED_RESULTS, BATCH_BYTES // len(filled))
    answers, faults = _parted(filled, await executed(redis, reading, raise_on_error=False))
    for fault in faults:
        yield fault
    for name, (has_more, *texts) in answers:
        for text in texts:
            yield name, text
        for at in range(len(texts), PEEKED_RESULTS if has_more else 0):
            rest: Any = await redis.lrange(name, at, at)
            for text in rest:
                yield name, text


def _parted(
    lists: Sequence[str], answers: Sequence[Any]
) -> tuple[list[tuple[str, Any]], list[tuple[str, ResponseError]]]:
    """Part answers from refusals, each with its list. Raises an error that concerns the whole server."""
    found, refused = [], []
    for name, answer in zip(lists, answers, strict=True):
        if isinstance(answer, ResponseError) and refusal(answer):
            refused.append((name, answer))
        elif isinstance(answer, Exception):
            raise answer
        else:
            found.append((name, answer))
    return found, refused


async def oldest_results(redis: Store, name: str, count: int, *, skipped: int = 0) -> list[bytes]:
    """At most `count` results, oldest first, after the first `skipped`.

    They stay in the list. Together they have at most `BATCH_BYTES`, unless the first is larger.
    """
    arguments = [str(count), str(BATCH_BYTES), str(skipped)]
    answer: list[bytes] = await read_only(redis, lua_script(redis, "oldest_results"), [name], arguments)
    return answer


async def drop_oldest_results(redis: Store, name: str, count: int) -> None:
    """Drop the `count` oldest results."""
    await redis.ltrim(name, 0, -count - 1)
