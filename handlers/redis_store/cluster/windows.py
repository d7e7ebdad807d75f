"""Idempotent submission in Redis Cluster.

The marker of an id and its queue are in different slots, so a submission has three steps, each in one slot. (1) If the
id has no marker, its marker stores the whole submission (`mark_submission.lua`). (2) The submission is queued; the
queue remembers that until an hour after the window (`deliver.lua`). (3) The marker is reduced to the token
(`confirm_submission.lua`). A producer that finds an unconfirmed marker, because the other producer is slow or has
crashed, does steps 2 and 3 for it; repeating them does no harm. So an id's submission is queued exactly once, even if
its producer crashes after any step. A submission that was marked but not queued is queued when its id is submitted
again. If its deadline has passed by then, the new submission replaces it.

A submission without a window has no marker. A later submission of its id is not queued while it is pending, claimed,
cancelled but not answered, or live and queued in the last hour.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Final, cast

import msgspec

from handlers.contract.errors import InvalidSetting
from handlers.redis_store.connection import Store, executed
from handlers.redis_store.idempotency.idempotency import KeyRecord, split_record
from handlers.redis_store.keys import active_key, beside, delivery_name, payload_key
from handlers.redis_store.scripts import Replication, lua_script
from handlers.redis_store.submit.submissions import MemberParts, Queued, queued_as

PAYLOAD_KEPT_SECONDS: Final = 600
_LATE_SECONDS: Final = 5.0
"""An unqueued submission is replaced this long after its deadline; clocks differ by less."""


class Marker(msgspec.Struct, frozen=True, omit_defaults=True):
    """An unconfirmed submission. In the key's value, the member to queue follows it.

    `deadline` is in Unix seconds. `record` is the encoded key record, which follows the token after the confirmation
    (see `idempotency`).
    """

    queue: str
    token: str
    deadline: int
    score: str
    window_seconds: int
    record: str = ""


_decoder = msgspec.json.Decoder(Marker)


class SubmissionRecord(msgspec.Struct, frozen=True):
    """The recorded submission of an id or an idempotency key.

    `key` is its Redis key. `text` and `marker` are set while it is unconfirmed. `record` is set if it has an
    idempotency key.
    """

    key: str
    request_id: str
    token: str
    record: KeyRecord | None = None
    text: bytes = b""
    marker: Marker | None = None

    @property
    def base(self) -> str:
        """The token without its sequence."""
        return self.token.rpartition("-")[0]

    @property
    def name(self) -> str:
        return delivery_name(self.request_id, self.base)


def read_standing(key: str, request_id: str, text: bytes) -> SubmissionRecord:
    """Decode the value `text` of `key`. `request_id` is the id, unless the value has a key record."""
    marker = None
    if text.startswith(b"{"):
        marker = _decoder.decode(text.partition(b"\n")[0])
    token, record = split_record(f"{marker.token}{marker.record}".encode() if marker else text)
    owner = record.id if record else request_id
    return SubmissionRecord(key, owner, token, record, text if marker else b"", marker)


class ClusterWindows:
    """Queues a submission if its id or key has none yet. Methods raise one of `STORE_FAILURES`."""

    def __init__(self, redis: Store, replication: Replication) -> None:
        self._redis = redis
        self._replication = replication
        self._deliver = lua_script(redis, "deliver")
        # Called by their text: pipelines cannot load a missing script.
        self._marking = str(lua_script(redis, "mark_submission").script)
        self._confirming = str(lua_script(redis, "confirm_submission").script)

    async def check(self, queue: str) -> None:
        """Raise `InvalidSetting` if the queue is not a sorted set."""
        await self._delivered(queue, 0, [])

    async def submit(
        self, parts: Sequence[MemberParts], markers: Sequence[Marker], members: Sequence[bytes]
    ) -> list[Queued]:
        """Queue each part whose id or idempotency key has no submission yet.

        `markers` and `members` belong to the same requests. Returns the new or the earlier submission of each.
        """
        texts = [msgspec.json.encode(marker) + b"\n" + member for marker, member in zip(markers, members, strict=True)]
        await self._store_payloads(parts)
        standing = await self._marked(parts, markers, texts, [b""] * len(parts))
        standing = await self._replace_late(parts, markers, texts, standing)
        await self._finish([each for each in standing if each.marker])
        lost = [
            payload_key(part.id, part.token)
            for part, each in zip(parts, standing, strict=True)
            if part.payload and each.base != part.token
        ]
        if lost:
            await self._forget(lost)
        return [queued_as(part, each.token, each.record) for part, each in zip(parts, standing, strict=True)]

    async def are_queued(self, standing: Sequence[tuple[str, SubmissionRecord]]) -> list[bool]:
        """Whether each (queue, submission) is or was in its queue."""
        pipeline = self._redis.pipeline(transaction=False)
        for queue, each in standing:
            pipeline.zscore(beside(queue, "delivered"), each.name)
        return [score is not None for score in await executed(self._redis, pipeline)] if standing else []

    async def _store_payloads(self, parts: Sequence[MemberParts]) -> None:
        """Store payloads before the markers, so that any producer can queue them.

        If a marker exists, the payload is not stored again, because the submission may be finished.
        """
        offloaded = [part for part in parts if part.payload]
        if not offloaded:
            return
        pipeline = self._redis.pipeline(transaction=False)
        for part in offloaded:
            pipeline.exists(part.submitted_key)
        found = await executed(self._redis, pipeline)
        pipeline = self._redis.pipeline(transaction=False)
        keys = []
        for part, is_known in zip(offloaded, found, strict=True):
            if not is_known:
                keys.append(payload_key(part.id, part.token))
                ends_at_ms = (part.deadline + PAYLOAD_KEPT_SECONDS) * 1000
                pipeline.set(keys[-1], part.payload, pxat=ends_at_ms)
        if keys:
            await self._replication.execute(pipeline, keys)

    async def _marked(
        self,
        parts: Sequence[MemberParts],
        markers: Sequence[Marker],
        texts: Sequence[bytes],
        replaced: Sequence[bytes],
    ) -> list[SubmissionRecord]:
        pipeline = self._redis.pipeline(transaction=False)
        keys = [part.submitted_key for part in parts]
        for key, marker, text, old in zip(keys, markers, texts, replaced, strict=True):
            ends_at_ms = (marker.deadline + marker.window_seconds) * 1000
            pipeline.eval(self._marking, 1, key, cast("str", text), str(ends_at_ms), cast("str", old))
        found = await self._replication.execute(pipeline, keys)
        return [read_standing(key, part.id, text) for key, part, text in zip(keys, parts, found, strict=True)]

    async def _replace_late(
        self,
        parts: Sequence[MemberParts],
        markers: Sequence[Marker],
        texts: Sequence[bytes],
        standing: list[SubmissionRecord],
    ) -> list[SubmissionRecord]:
        """Replace submissions that were never queued and whose deadline has passed."""
        now = time.time()
        late = [
            (at, each.marker.queue)
            for at, each in enumerate(standing)
            if each.marker and each.text != texts[at] and each.marker.deadline + _LATE_SECONDS < now
        ]
        queued = await self.are_queued([(queue, standing[at]) for at, queue in late])
        over = [at for (at, _), is_queued in zip(late, queued, strict=True) if not is_queued]
        if over:
            old = [standing[at].text for at in over]
            chosen = ([parts[at] for at in over], [markers[at] for at in over], [texts[at] for at in over])
            for at, each in zip(over, await self._marked(*chosen, old), strict=True):
                standing[at] = each
        return standing

    async def _finish(self, standing: Sequence[SubmissionRecord]) -> None:
        """Queue and confirm unconfirmed submissions, also of other producers."""
        found = await self.are_queued([(each.marker.queue, each) for each in standing if each.marker])
        pipeline = self._redis.pipeline(transaction=False)
        # An earlier submission may be finished by now, so its `request-active` key must not be set again.
        fresh = [each for each, is_queued in zip(standing, found, strict=True) if not is_queued]
        for each in fresh:
            if each.marker:
                pipeline.set(active_key(each.request_id), each.token, pxat=each.marker.deadline * 1000)
        if fresh:
            await executed(self._redis, pipeline)
        rows: defaultdict[tuple[str, int], list[str | bytes]] = defaultdict(list)
        pipeline = self._redis.pipeline(transaction=False)
        for each in standing:
            if each.marker:
                member = each.text.partition(b"\n")[2]
                rows[each.marker.queue, each.marker.window_seconds] += [each.name, member, each.marker.score]
                confirmed = f"{each.token}{each.marker.record}"
                pipeline.eval(self._confirming, 1, each.key, cast("str", each.text), confirmed)
        for (queue, window_seconds), values in rows.items():
            await self._delivered(queue, window_seconds, values)
        if rows:
            await executed(self._redis, pipeline)

    async def _delivered(self, queue: str, window_seconds: int, rows: Sequence[str | bytes]) -> None:
        keys = [queue, beside(queue, "delivered")]
        if not await self._replication.run(self._deliver, keys, ["zset", "", window_seconds, *rows]):
            raise InvalidSetting("queue", found=f"{queue}, a key of another type", accepted="a sorted set")

    async def _forget(self, keys: Sequence[str]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for key in keys:
            pipeline.delete(key)
        await executed(self._redis, pipeline)
