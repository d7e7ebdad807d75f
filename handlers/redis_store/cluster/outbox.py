"""Transactional outbox for writes to other slots of a Redis Cluster.

No script can write to two slots, so a settlement has two steps. The first drops the claim and writes a record to an
outbox in the same slot (`post*.lua`, atomic). The second delivers the record to its target (`deliver.lua`, which
remembers delivered ids for an hour); then the record is removed. Records of a crashed poller are delivered by the next
scan of any other. Nothing is lost. A record is delivered twice only if it waits for more than an hour between its
delivery and its removal, with no poller running.

{<home>}:outbox      hash  id -> record: one line of JSON, then the bytes to deliver; removed when delivered
{<home>}:outbox-idx  zset  id, score = since when, Unix seconds of the server; removed with it
{<target>}:delivered zset  id, score = when, or the end of the window of a request (`windows`);
                           each is forgotten an hour later
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Final, cast

import msgspec
from redis.exceptions import NoPermissionError

from handlers.redis_store.connection import Store, executed
from handlers.redis_store.keys import beside
from handlers.redis_store.replication import Replication
from handlers.redis_store.scripts import BATCH_BYTES, lua_script

OVERDUE_SECONDS: Final = 5.0
"""The time a poller has to deliver its own record: longer than a delivery takes, shorter than a lease."""

_BATCH: Final = 200


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where to deliver a value, and which keys to delete then. An empty `key` delivers nothing.

    `kind` is the key's type. `fallback` is used if `key` has another type or the ACL refuses it.
    """

    kind: str = "list"
    key: str = ""
    fallback: str = ""
    score: str = ""
    expire_seconds: int = 0
    token: str = ""
    tokens_in: tuple[str, ...] = ()
    payload_key: str = ""


_decoder = msgspec.json.Decoder(Record)


def encode_outbox_record(record: Record, value: bytes) -> bytes:
    """The record's line and the bytes to deliver, as an outbox holds them."""
    return msgspec.json.encode(record) + b"\n" + value


class Outbox:
    """The outbox beside the key `home`, a queue or a retry set. Methods raise one of `STORE_FAILURES`."""

    def __init__(self, redis: Store, home: str, replication: Replication) -> None:
        self._redis = redis
        self.key = beside(home, "outbox")
        self.index = beside(home, "outbox-idx")
        self._replication = replication
        self._deliver = lua_script(redis, "deliver")
        self._forgetting = lua_script(redis, "forget")  # by its text: a cluster's pipelines take no hashes
        self._overdue = lua_script(redis, "overdue_posts")

    async def deliver(self, rows: Sequence[tuple[bytes, bytes]]) -> None:
        """Deliver posted rows (id, record) and remove them. Repeating it does no harm.

        Rows that neither their key nor the fallback accepts stay in the outbox.
        """
        targets: defaultdict[tuple[str, str, str, int], list[tuple[bytes, bytes, str]]] = defaultdict(list)
        heads: dict[bytes, Record] = {}
        for post_id, text in rows:
            line, _, value = text.partition(b"\n")
            heads[post_id] = head = _decoder.decode(line)
            if head.key:
                target = (head.kind, head.key, head.fallback, head.expire_seconds)
                targets[target].append((post_id, value, head.score))
        for (kind, key, fallback, expire_seconds), values in targets.items():
            for batch in _batches(values):
                arguments = [kind, expire_seconds or "", "", *(part for row in batch for part in row)]
                is_delivered = await self._delivered(key, arguments) or (
                    fallback and await self._delivered(fallback, arguments)
                )
                for post_id, _, _ in () if is_delivered else batch:
                    del heads[post_id]
        await self._forget(list(heads.values()))
        await self._remove(list(heads))

    async def recover(self) -> int:
        """Deliver overdue records of crashed pollers; returns how many."""
        found = await self._overdue(keys=[self.key, self.index], args=[OVERDUE_SECONDS, _BATCH, BATCH_BYTES])
        rows = pairs(found)
        if rows:
            await self.deliver(rows)
        return len(rows)

    async def _delivered(self, key: str, arguments: list[Any]) -> bool:
        try:
            return bool(
                await self._replication.run(self._deliver, [key, beside(key, "delivered")], arguments)
            )
        except NoPermissionError:
            return False

    async def _forget(self, heads: Sequence[Record]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        count = 0
        for head in heads:
            for key in head.tokens_in if head.token else ():
                pipeline.eval(str(self._forgetting.script), 1, key, head.token)
                count += 1
            if head.payload_key:
                pipeline.delete(head.payload_key)
                count += 1
        if count:
            # A key of another type expires by itself; the record must not wait for that.
            await executed(self._redis, pipeline, raise_on_error=False)

    async def _remove(self, ids: Sequence[bytes]) -> None:
        if not ids:
            return
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.hdel(self.key, *cast("Sequence[str]", ids))
        pipeline.zrem(self.index, *cast("Sequence[str]", ids))
        await executed(self._redis, pipeline)


def pairs(answer: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """The rows of a script that returns ids and records in turn."""
    return list(zip(answer[::2], answer[1::2], strict=True))


def _batches(values: Sequence[tuple[bytes, bytes, str]]) -> Iterator[list[tuple[bytes, bytes, str]]]:
    """Rows for one call each: no more bytes than `BATCH_BYTES`, unless one row is larger."""
    batch: list[tuple[bytes, bytes, str]] = []
    size = 0
    for row in values:
        size += len(row[1])
        if batch and size > BATCH_BYTES:
            yield batch
            batch, size = [], len(row[1])
        batch.append(row)
    if batch:
        yield batch
