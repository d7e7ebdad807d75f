"""Submission, cancellation and look-up in Redis Cluster.

The keys of a request are in several slots. It is queued last, when all its keys exist, and only once even if it is sent
twice (`deliver.lua`). If a producer crashes before, its keys expire and no request was queued.

An idempotent submission has three steps, because the marker of its id and its queue are in different slots. (1) If the
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

import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Final, cast

import msgspec

from handlers.contract.errors import InvalidSetting
from handlers.contract.request import score_of
from handlers.number_text import whole
from handlers.redis_store.connection import Store, executed
from handlers.redis_store.idempotency.idempotency import KeyRecord, split_record
from handlers.redis_store.keys import (
    CANCELLATIONS,
    LONGEST_MARKER_BYTES,
    LONGEST_TEXT_BYTES,
    active_key,
    beside,
    cancel_key,
    delivery_name,
    payload_key,
    queue_keys,
    sent_key,
    seq_key,
    submitted_key,
)
from handlers.redis_store.scripts import BATCH_BYTES, Replication, lua_script, read_only
from handlers.redis_store.submit.submissions import MemberParts, Queued, RequestState, Submissions, queued_as

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
        await self.deliver(queue, 0, [])

    async def submit(
        self, parts: Sequence[MemberParts], markers: Sequence[Marker], members: Sequence[bytes]
    ) -> list[Queued]:
        """Queue each request whose id or idempotency key has no submission yet.

        `parts`, `markers` and `members` describe the same requests, in the same order. Returns the new or the earlier
        submission of each request.
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
            await self.deliver(queue, window_seconds, values)
        if rows:
            await executed(self._redis, pipeline)

    async def deliver(self, queue: str, window_seconds: int | str, rows: Sequence[str | bytes]) -> None:
        """Queue rows (name, member, score), each name once. Raises `InvalidSetting` if `queue` has another type.

        The queue remembers their names until an hour after the window, which may be empty.
        """
        keys = [queue, beside(queue, "delivered")]
        if not await self._replication.run(self._deliver, keys, ["zset", "", window_seconds, *rows]):
            raise InvalidSetting("queue", found=f"{queue}, a key of another type", accepted="a sorted set")

    async def _forget(self, keys: Sequence[str]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for key in keys:
            pipeline.delete(key)
        await executed(self._redis, pipeline)


_SEQ_KEPT_SECONDS = 3_600
_CANCEL_KEPT_MS = 3_600_000
_STATES = {0: RequestState.RETRYING, 1: RequestState.PENDING, 2: RequestState.QUEUED}
"""By the answer of is_pending.lua."""
_SENT_KEPT_SECONDS = 120  # as in submit.lua


class ClusterSubmissions(Submissions):
    """`Submissions` for one Redis Cluster."""

    def __init__(self, redis: Store, replication: Replication | None = None) -> None:
        super().__init__(redis, replication)
        self._note = lua_script(redis, "note_cancelled")
        self._is_pending = lua_script(redis, "is_pending")
        self._windows = ClusterWindows(redis, self._replication)

    async def submit(
        self,
        queue: str,
        requests: Sequence[MemberParts],
        *,
        window_seconds: int = 0,
        is_repeated: bool = False,
    ) -> list[Queued]:
        """Queue `requests` in order. `is_repeated`: the reply of an equal call may have been lost.

        Requests with a window or an idempotency key are queued before those without. Their markers make a repeated call
        harmless.
        """
        once = [part for part in requests if part.window(window_seconds)]
        rest = [part for part in requests if not part.window(window_seconds)]
        done_once = iter(await self._submit_once(queue, once, window_seconds) if once else [])
        done = iter(await self._submit_each(queue, rest, is_repeated=is_repeated) if rest else [])
        return [next(done_once if part.window(window_seconds) else done) for part in requests]

    async def _submit_each(self, queue: str, requests: Sequence[MemberParts], *, is_repeated: bool) -> list[Queued]:
        known = await self._known(requests) if is_repeated else {}
        sequence = await self._sequence(queue, [part for part in requests if _name(part) not in known])
        delivered = await self._delivered(queue, requests) if is_repeated else set()
        queued = []
        rows: list[str | bytes] = []
        for part in requests:
            seq = known.get(_name(part)) or next(sequence[part.deadline])
            queued.append(Queued(token=f"{part.token}-{seq}", seq=seq, is_new=True))
            rows += [_name(part), _member(part, seq), _score(part, seq)]
        if len(known) < len(requests):
            reported = json.dumps([one.seq for one in queued])
            await self._redis.set(_sent_key(requests), reported, ex=_SENT_KEPT_SECONDS)
        # A delivered submission may be finished by now, so its `request-active` key must not be set again.
        fresh = [pair for pair in zip(requests, queued, strict=True) if _name(pair[0]) not in delivered]
        await self._mark([part for part, _ in fresh], [done for _, done in fresh])
        await self._windows.deliver(queue, "", rows)
        return queued

    async def _submit_once(self, queue: str, requests: Sequence[MemberParts], window_seconds: int) -> list[Queued]:
        await self._windows.check(queue)
        earlier = await self._earlier(queue, [part for part in requests if not part.record])
        parts = [part for part in requests if part.record or part.id not in earlier]
        sequence = await self._sequence(queue, parts)
        numbers = [next(sequence[part.deadline]) for part in parts]
        markers = [
            Marker(
                queue,
                f"{part.token}-{seq}",
                part.deadline,
                _score(part, seq),
                part.window(window_seconds),
                part.record_text.decode(),
            )
            for part, seq in zip(parts, numbers, strict=True)
        ]
        members = [_member(part, seq) for part, seq in zip(parts, numbers, strict=True)]
        queued = iter(await self._windows.submit(parts, markers, members) if parts else [])
        return [
            Queued(token=earlier[part.id], seq=0, is_new=False)
            if part.id in earlier and not part.record
            else next(queued)
            for part in requests
        ]

    async def _earlier(self, queue: str, requests: Sequence[MemberParts]) -> dict[str, str]:
        """Id -> token of live submissions not recorded by their id's marker.

        They were made without a window, after the recorded one (as in submit.lua).
        """
        if not requests:
            return {}
        pipeline = self._redis.pipeline(transaction=False)
        for part in requests:
            pipeline.getrange(submitted_key(part.id), 0, LONGEST_MARKER_BYTES)
            pipeline.getrange(active_key(part.id), 0, LONGEST_TEXT_BYTES)
        found = await executed(self._redis, pipeline)
        live = {
            part.id: SubmissionRecord(submitted_key(part.id), part.id, token.decode())
            for part, marker, token in zip(requests, found[::2], found[1::2], strict=True)
            if token and (not marker or read_standing(submitted_key(part.id), part.id, marker).token != token.decode())
        }
        are_queued = await self._windows.are_queued([(queue, each) for each in live.values()])
        earlier = {}
        for each, is_queued in zip(live.values(), are_queued, strict=True):
            state = RequestState.QUEUED if is_queued else (await self.look_up(queue, each.request_id, each.token))[0]
            if state not in (
                RequestState.RETRYING,
                RequestState.FINISHED,
            ):  # these mean that the live submission was never queued
                earlier[each.request_id] = each.token
        return earlier

    def _record_in(self, value: bytes) -> KeyRecord | None:
        return read_standing("", "", value).record

    async def cancel(self, submissions: Sequence[tuple[str, str]]) -> list[bool]:
        """Cancel each (id, token) and return whether it was live. An empty token: the live submission."""
        if not submissions:
            return []
        pipeline = self._redis.pipeline(transaction=False)
        for request_id, _ in submissions:
            pipeline.getrange(active_key(request_id), 0, LONGEST_TEXT_BYTES)
            pipeline.pttl(active_key(request_id))
        answer = await executed(self._redis, pipeline)
        lives = list(zip(answer[::2], answer[1::2], strict=True))
        done = [
            bool(token) and wanted in ("", token.decode())
            for (_, wanted), (token, _) in zip(submissions, lives, strict=True)
        ]
        pipeline = self._redis.pipeline(transaction=False)
        notes: list[bytes | int] = []
        for (request_id, _), (token, life_ms), is_live in zip(submissions, lives, done, strict=True):
            if is_live:
                left_ms = max(0, life_ms)
                pipeline.set(cancel_key(request_id), token, px=left_ms + _CANCEL_KEPT_MS)
                notes += [left_ms, request_id.encode() + b"\0" + token]
        if notes:
            await executed(self._redis, pipeline)
            await self._note(keys=[CANCELLATIONS], args=[0, *notes])
        return done

    async def look_up(self, queue: str, request_id: str, token: str = "") -> tuple[RequestState, str]:
        """The state of a submission and its token. An empty token: the live submission."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.getrange(active_key(request_id), 0, LONGEST_TEXT_BYTES)
        pipeline.pexpiretime(active_key(request_id))
        pipeline.getrange(cancel_key(request_id), 0, LONGEST_TEXT_BYTES)
        live, ends_at_ms, cancelled = await executed(self._redis, pipeline)
        if not live:
            return await self._state_of_the_dead(request_id, token)
        found = live.decode()
        if token not in ("", found):
            return RequestState.FINISHED, token
        if cancelled == live:
            return RequestState.CANCELLING, found
        return await self._state(queue, request_id, found, round(ends_at_ms / 1000)), found

    async def _state_of_the_dead(self, request_id: str, token: str) -> tuple[RequestState, str]:
        if token:
            return RequestState.FINISHED, token
        key = submitted_key(request_id)
        text = cast("bytes", await self._redis.getrange(key, 0, LONGEST_MARKER_BYTES))
        if not text:
            return RequestState.UNKNOWN, ""
        standing = read_standing(key, request_id, text)
        if standing.marker and not (await self._windows.are_queued([(standing.marker.queue, standing)]))[0]:
            return RequestState.UNKNOWN, ""
        return RequestState.FINISHED, standing.token

    async def _state(self, queue: str, request_id: str, token: str, deadline: int) -> RequestState:
        if await self._redis.hexists(queue_keys(queue, cluster=True).claimed, f"{request_id}\0{token}"):
            return RequestState.CLAIMED
        place = whole(token.rpartition("-")[2])
        if place is None:
            return RequestState.QUEUED
        return _STATES[
            await read_only(self._redis, self._is_pending, [queue], [repr(score_of(deadline, place)), token])
        ]

    async def _known(self, requests: Sequence[MemberParts]) -> dict[str, int]:
        """Name -> sequence of submissions that an earlier call has numbered."""
        reported = cast("bytes", await self._redis.getrange(_sent_key(requests), 0, BATCH_BYTES))
        if reported:
            return {_name(part): seq for part, seq in zip(requests, json.loads(reported), strict=True)}
        pipeline = self._redis.pipeline(transaction=False)
        for part in requests:
            pipeline.getrange(active_key(part.id), 0, LONGEST_TEXT_BYTES)
        known = {}
        for part, live in zip(requests, await executed(self._redis, pipeline), strict=True):
            token, _, digits = live.rpartition(b"-")
            seq = whole(digits)
            if token == part.token.encode() and seq is not None:
                known[_name(part)] = seq
        return known

    async def _delivered(self, queue: str, requests: Sequence[MemberParts]) -> set[str]:
        """The names of submissions that are or were in the queue."""
        pipeline = self._redis.pipeline(transaction=False)
        for part in requests:
            pipeline.zscore(beside(queue, "delivered"), _name(part))
        scores = await executed(self._redis, pipeline)
        return {_name(part) for part, score in zip(requests, scores, strict=True) if score is not None}

    async def _sequence(self, queue: str, requests: Sequence[MemberParts]) -> dict[int, Iterator[int]]:
        counts = Counter(part.deadline for part in requests)
        if not counts:
            return {}
        pipeline = self._redis.pipeline(transaction=False)
        for deadline, count in counts.items():
            pipeline.incrby(seq_key(queue, deadline), count)
            pipeline.expireat(seq_key(queue, deadline), deadline + _SEQ_KEPT_SECONDS)
        lasts = (await executed(self._redis, pipeline))[::2]
        return {
            deadline: iter(range(last - count + 1, last + 1))
            for (deadline, count), last in zip(counts.items(), lasts, strict=True)
        }

    async def _mark(self, requests: Sequence[MemberParts], queued: Sequence[Queued]) -> None:
        if not requests:
            return
        pipeline = self._redis.pipeline(transaction=False)
        for part, done in zip(requests, queued, strict=True):
            pipeline.set(active_key(part.id), done.token, pxat=part.deadline * 1000)
            if part.payload:
                ends_at_ms = (part.deadline + PAYLOAD_KEPT_SECONDS) * 1000
                pipeline.set(payload_key(part.id, part.token), part.payload, pxat=ends_at_ms)
        await self._replication.execute(
            pipeline, [payload_key(part.id, part.token) for part in requests if part.payload]
        )


def _name(part: MemberParts) -> str:
    return delivery_name(part.id, part.token)


def _member(part: MemberParts, seq: int) -> bytes:
    number = str(seq).encode()
    return b"".join((part.head, number, b'","enqueue_seq":', number, part.tail))


def _score(part: MemberParts, seq: int) -> str:
    return repr(score_of(part.deadline, seq))


def _sent_key(requests: Sequence[MemberParts]) -> str:
    return sent_key([(part.id, part.token) for part in requests])
