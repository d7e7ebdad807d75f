"""Submission, cancellation and look-up in Redis Cluster.

The keys of a request are in several slots. It is queued last, when all its keys exist, and only once even if it is sent
twice (`deliver.lua`). If a producer crashes before, its keys expire and no request was queued.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import cast

from handlers.contract.errors import InvalidSetting
from handlers.number_text import whole
from handlers.redis_store.cluster.windows import (
    PAYLOAD_KEPT_SECONDS,
    ClusterWindows,
    Marker,
    SubmissionRecord,
    read_standing,
)
from handlers.redis_store.connection import Store, executed
from handlers.redis_store.idempotency.idempotency import KeyRecord
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
from handlers.redis_store.submit.submissions import MemberParts, Queued, RequestState, Submissions

_SEQ_STEPS = 2_097_152  # 2^21, as in submit.lua
_SEQ_KEPT_SECONDS = 3_600
_CANCEL_KEPT_MS = 3_600_000
_STATES = {0: RequestState.RETRYING, 1: RequestState.PENDING, 2: RequestState.QUEUED}
"""By the answer of is_pending.lua."""
_SENT_KEPT_SECONDS = 120  # as in submit.lua


class ClusterSubmissions(Submissions):
    """`Submissions` for one Redis Cluster."""

    def __init__(self, redis: Store, replication: Replication | None = None) -> None:
        super().__init__(redis, replication)
        self._deliver = lua_script(redis, "deliver")
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
        harmless (see `windows`).
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
        keys = [queue, beside(queue, "delivered")]
        if not await self._replication.run(self._deliver, keys, ["zset", "", "", *rows]):
            raise InvalidSetting("queue", found=f"{queue}, a key of another type", accepted="a sorted set")
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
        score = deadline + min(place, _SEQ_STEPS - 1) / _SEQ_STEPS
        return _STATES[await read_only(self._redis, self._is_pending, [queue], [repr(score), token])]

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
    return repr(part.deadline + min(seq, _SEQ_STEPS - 1) / _SEQ_STEPS)


def _sent_key(requests: Sequence[MemberParts]) -> str:
    return sent_key([(part.id, part.token) for part in requests])
