"""What one slot of a Redis Cluster has to say to keys of other slots: said once, whoever dies in between.

No script can touch two slots. So a settlement has two halves: the first drops the claim and leaves a record in an
outbox beside it (`post*.lua`, one step); the second delivers the record where it belongs (`deliver.lua`, which
knows for an hour what it has delivered), and only then the record is removed. What a dead poller left in an
outbox is delivered by the next look of any other. So nothing is lost, and nothing comes twice unless a record
waits for longer than that hour between its delivery and its removal, with no poller running.

{<home>}:outbox      hash  id -> record: one line of JSON, then the bytes to deliver; removed when delivered
{<home>}:outbox-idx  zset  id, score = since when, Unix seconds of the server; removed with it
{<target>}:delivered zset  id, score = when, or when the window ends of what is queued with one (`cluster_windows`);
                           each is forgotten an hour later
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final, cast

import msgspec
from redis.exceptions import NoPermissionError

from handlers.redis_store.connection import Store, executed
from handlers.redis_store.keys import beside
from handlers.redis_store.replication import Replication
from handlers.redis_store.scripts import lua_script

OVERDUE_SECONDS: Final = 5.0
"""How long who posted a record has for it: far longer than delivering takes, far shorter than a lease."""

_BATCH: Final = 200


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where to deliver, and what to forget then. `kind` is the key's type; an empty `key` delivers nothing.

    `fallback` is the key of the same kind that takes what `key` cannot: it is of another type or not ours.
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


def encode_record(record: Record, value: bytes) -> bytes:
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
        """Deliver posted rows (id, record) and remove them. Sending it twice does no harm."""
        targets: defaultdict[tuple[str, str, str, int], list[tuple[bytes, bytes, str]]] = defaultdict(list)
        heads: list[Record] = []
        for post_id, text in rows:
            line, _, value = text.partition(b"\n")
            head = _decoder.decode(line)
            heads.append(head)
            if head.key:
                target = (head.kind, head.key, head.fallback, head.expire_seconds)
                targets[target].append((post_id, value, head.score))
        for (kind, key, fallback, expire_seconds), values in targets.items():
            arguments = [kind, expire_seconds or "", "", *(part for row in values for part in row)]
            if not await self._delivered(key, arguments) and fallback:
                await self._delivered(fallback, arguments)
        await self._forget(heads)
        await self._remove([post_id for post_id, _ in rows])

    async def recover(self) -> int:
        """Deliver what dead posters left; returns how many."""
        found = await self._overdue(keys=[self.key, self.index], args=[OVERDUE_SECONDS, _BATCH])
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
            await executed(self._redis, pipeline)

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
