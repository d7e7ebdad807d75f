"""Queue and retry set in Redis Cluster, and their outbox.

A queue's results, retries and tokens are in other slots, and no script can write to two slots. So an ack or nack takes
three steps. (1) The claim is dropped and a record is written to an outbox in the same slot (`post*.lua`, atomic). (2)
The record is delivered to its target (`deliver.lua`, which keeps delivered ids for an hour). (3) The record is removed.
The next scan of any other poller delivers the records of a crashed poller, so nothing is lost. A record is delivered
twice only if its poller crashes between delivery and removal and no other poller runs for an hour.

{<home>}:outbox      hash  id -> record: one line of JSON, then the bytes to deliver; removed when delivered
{<home>}:outbox-idx  zset  id, score = time of the record, Unix seconds of the server; removed with the record
{<target>}:delivered zset  id, score = delivery time, or the end of a request's idempotency window (`submissions.py`);
                           removed an hour later
"""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final, cast

import msgspec
from redis.exceptions import NoPermissionError

from handlers.clock import FollowedClock
from handlers.redis_store.connection import STORE_FAILURES, Store, executed, flat
from handlers.redis_store.keys import active_key, beside, cancel_key, settled_key
from handlers.redis_store.queue.queue import (
    SCAN_COUNT,
    Ack,
    Claim,
    Nack,
    QueueOptions,
    Reclaimed,
    RedisQueue,
    Retries,
    batch_digest,
    settled_effects,
)
from handlers.redis_store.scripts import BATCH_BYTES, SCRIPT_BYTES, Replication, in_batches, lua_script

OVERDUE_SECONDS: Final = 5.0
"""Age at which other pollers deliver a record: longer than a delivery takes, shorter than a lease."""

_BATCH: Final = 200


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where to deliver a value, and which keys to delete afterwards.

    `kind` is the type of `key`; an empty `key` delivers nothing. `fallback` is used if `key` has another type or the
    ACL refuses it. Keys `tokens_in` are deleted if they hold `token`.
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
    """Encode a record: a line of JSON, then the bytes to deliver."""
    return msgspec.json.encode(record) + b"\n" + value


class Outbox:
    """The outbox of the key `home`, a queue or a retry set. Methods raise one of `STORE_FAILURES`."""

    def __init__(self, redis: Store, home: str, replication: Replication) -> None:
        self._redis = redis
        self.key = beside(home, "outbox")
        self.index = beside(home, "outbox-idx")
        self._replication = replication
        self._deliver = lua_script(redis, "deliver")
        self._forgetting = lua_script(redis, "forget")  # called by its text: see `_forget`
        self._overdue = lua_script(redis, "overdue_posts")

    async def deliver(self, rows: Sequence[tuple[bytes, bytes]]) -> None:
        """Deliver posted rows (id, record) and remove them. Repeating it does no harm.

        Rows that are refused by their key and by its fallback stay in the outbox.
        """
        targets: defaultdict[tuple[str, str, str, int], list[tuple[bytes, bytes, str]]] = defaultdict(list)
        heads: dict[bytes, Record] = {}
        for post_id, returned in rows:
            text = returned or await self._record(post_id)
            if not text:
                continue  # another poller has delivered it
            line, _, value = text.partition(b"\n")
            heads[post_id] = head = _decoder.decode(line)
            if head.key:
                target = (head.kind, head.key, head.fallback, head.expire_seconds)
                targets[target].append((post_id, value, head.score))
        for (kind, key, fallback, expire_seconds), values in targets.items():
            for batch in in_batches(values, lambda row: len(row[1]), BATCH_BYTES):
                arguments = [kind, expire_seconds or "", "", *(part for row in batch for part in row)]
                is_delivered = await self._delivered(key, arguments) or (
                    fallback and await self._delivered(fallback, arguments)
                )
                for post_id, _, _ in () if is_delivered else batch:
                    del heads[post_id]
        await self._forget(list(heads.values()))
        await self._remove(list(heads))

    async def _record(self, post_id: bytes) -> bytes:
        """A record too large for the script's reply. Empty if the record no longer exists."""
        found = cast("bytes | None", await self._redis.hget(self.key, cast("str", post_id)))
        return found or b""

    async def recover(self) -> int:
        """Deliver overdue records of crashed pollers; returns how many."""
        found = await self._overdue(keys=[self.key, self.index], args=[OVERDUE_SECONDS, _BATCH, BATCH_BYTES])
        rows = pairs(found)
        if rows:
            await self.deliver(rows)
        return len(rows)

    async def _delivered(self, key: str, arguments: list[Any]) -> bool:
        try:
            return bool(await self._replication.run(self._deliver, [key, beside(key, "delivered")], arguments))
        except NoPermissionError:
            return False

    async def _forget(self, heads: Sequence[Record]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        count = 0
        for head in heads:
            for key in head.tokens_in if head.token else ():
                # By its text, because a pipeline cannot load a missing script.
                pipeline.eval(str(self._forgetting.script), 1, key, head.token)
                count += 1
            if head.payload_key:
                pipeline.delete(head.payload_key)
                count += 1
        if count:
            # A key of another type fails its command only; it expires by itself.
            await executed(self._redis, pipeline, raise_on_error=False)

    async def _remove(self, ids: Sequence[bytes]) -> None:
        if not ids:
            return
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.hdel(self.key, *cast("Sequence[str]", ids))
        pipeline.zrem(self.index, *cast("Sequence[str]", ids))
        await executed(self._redis, pipeline)


def pairs(answer: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """Pair the alternating ids and records of a script's answer."""
    return list(zip(answer[::2], answer[1::2], strict=True))


class ClusterQueue(RedisQueue):
    """A `RedisQueue` whose acks and nacks reach other slots through an outbox."""

    def __init__(self, redis: Store, name: str, options: QueueOptions, clock: FollowedClock | None = None) -> None:
        super().__init__(redis, name, options, clock)
        self._outbox = Outbox(redis, name, self._replication)
        self._post = lua_script(redis, "post")

    async def claim(
        self,
        count: int,
        *,
        only_expired: bool = False,
        max_bytes: int = SCRIPT_BYTES,
        most_retries: int | None = None,
        position: float = 0.0,
    ) -> list[Claim]:
        """As `RedisQueue.claim`. A second round trip reads cancellations from other slots."""
        claims = await super().claim(
            count,
            only_expired=only_expired,
            max_bytes=max_bytes,
            most_retries=most_retries,
            position=position,
        )
        try:
            taken_back = {claim.owner_token for claim in await self.cancelled(claims)}
        except STORE_FAILURES:
            return claims  # they are claimed already; the next scan finds the cancelled ones
        return [msgspec.structs.replace(claim, is_cancelled=claim.owner_token in taken_back) for claim in claims]

    async def _recorded(self, acks: Sequence[Ack]) -> list[bool]:
        rows = [(ack.claim, self._result_record(ack), ack.dead or b"") for ack in acks]
        return await self._posted("ack", rows)

    async def nack(self, nacks: Sequence[Nack]) -> list[bool]:
        """Put requests into the retry set. False if the lease was lost and nothing changed."""
        rows = [(nack.claim, self._retry_record(nack), b"") for nack in nacks]
        return await self._posted("nack", rows)

    async def reclaim(self, limit: int, max_deliveries: int) -> Reclaimed:
        """Reclaim requests of crashed owners, and deliver their outbox records."""
        await self._outbox.recover()
        return await super().reclaim(limit, max_deliveries)

    async def _posted(self, operation: str, rows: Sequence[tuple[Claim, bytes, bytes]]) -> list[bool]:
        keys = self._keys
        settled = settled_key(keys, batch_digest(operation, [claim for claim, _, _ in rows]))
        arguments = [(claim.claim_key, claim.owner_token, record, dead) for claim, record, dead in rows]
        effects = await self._replication.run(
            self._post,
            [
                keys.claimed,
                keys.owners,
                keys.index,
                keys.deaths,
                keys.dead,
                settled,
                self._outbox.key,
                self._outbox.index,
            ],
            [int(operation == "ack"), *flat(arguments)],
        )
        ours = [
            (claim.owner_token, record) for (claim, record, _), effect in zip(rows, effects, strict=True) if effect == 1
        ]
        await self._outbox.deliver(ours)
        return settled_effects(effects)

    def _result_record(self, ack: Ack) -> bytes:
        record = Record(
            key=ack.result_queue_name if ack.result else "",
            fallback=self._options.default_result_queue_name,
            expire_seconds=max(0, ack.result_ttl_seconds or 0),
            token=ack.request_token,
            tokens_in=(active_key(ack.request_id), cancel_key(ack.request_id)),
            payload_key=ack.own_payload_key,
        )
        return encode_outbox_record(record, ack.result)

    def _retry_record(self, nack: Nack) -> bytes:
        due = f"{self.now() + nack.delay_seconds:.6f}"
        return encode_outbox_record(
            Record(kind="zset", key=self._options.retry_queue_name, score=due), nack.retry_member
        )


class ClusterRetries(Retries):
    """A retry set in Redis Cluster. Its members return to queues in other slots."""

    def __init__(self, redis: Store, retry_queue_name: str, default_queue: str, wait_replicas: int = 0) -> None:
        super().__init__(redis, retry_queue_name, default_queue)
        self._outbox = Outbox(redis, retry_queue_name, Replication(redis, wait_replicas, 1_000))
        self.work_keys.append(self._outbox.index)
        self._posting = [retry_queue_name, self._outbox.key, self._outbox.index]
        self._post_due = lua_script(redis, "post_due")
        self._post_cancelled = lua_script(redis, "post_cancelled")

    async def promote(self, limit: int) -> int:
        """Move due retries to their queues; returns how many."""
        await self._outbox.recover()
        moved = 0
        while moved < limit:
            posted = await self._post_due(
                keys=self._posting,
                args=[secrets.token_hex(16), self.default_queue, limit - moved, SCRIPT_BYTES],
            )
            if not posted:
                break
            await self._outbox.deliver(pairs(posted))
            moved += len(posted) // 2
        return moved

    async def _brought(self, names: Sequence[bytes]) -> int:
        brought, low, passed = 0, b"-inf", 0
        while low:
            answer = await self._post_cancelled(
                keys=self._posting,
                args=[
                    secrets.token_hex(16),
                    self.default_queue,
                    low,
                    passed,
                    SCAN_COUNT,
                    SCRIPT_BYTES,
                    *names,
                ],
            )
            low, passed, posted = answer[0], answer[1], pairs(answer[2:])
            await self._outbox.deliver(posted)
            brought += len(posted)
        return brought
