"""Queue and retry set in Redis Cluster, with a single server's guarantees.

A queue's results, retries and tokens are in other slots, so its acks and nacks go through an outbox (`outbox.py`).
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import msgspec

from handlers.clock import FollowedClock
from handlers.redis_store.cluster.outbox import Outbox, Record, encode_outbox_record, pairs
from handlers.redis_store.connection import STORE_FAILURES, Store, flat
from handlers.redis_store.keys import active_key, cancel_key, settled_key
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
    has_payload_key,
    settled_effects,
)
from handlers.redis_store.scripts import SCRIPT_BYTES, Replication, lua_script


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
            payload_key=ack.payload_ref if has_payload_key(ack) else "",
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
