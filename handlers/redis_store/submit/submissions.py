"""What a producer does with Redis: queue requests, cancel them, look one up.

Every operation is one `.lua` file and one round trip, however many requests it carries.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import msgspec

from handlers.redis_store.connection import Store, executed
from handlers.redis_store.keys import (
    CANCELLATIONS,
    active_key,
    cancel_key,
    claimed_key,
    payload_key,
    sent_key,
    seq_key,
    submitted_key,
)
from handlers.redis_store.replication import Replication
from handlers.redis_store.scripts import lua_script, read_only


class RequestState(StrEnum):
    """Where a submission is now."""

    PENDING = "pending"
    """In the queue, waiting to be claimed."""
    CLAIMED = "claimed"
    """Held by a poller: at a gate, or in flight."""
    RETRYING = "retrying"
    """Attempted at least once, waiting for its next attempt (due, or not yet)."""
    QUEUED = "queued"
    """Pending or retrying; the producer's tokens do not tell which."""
    CANCELLING = "cancelling"
    """Cancelled; its `CANCELLED` result is on the way."""
    FINISHED = "finished"
    """No longer live: its final result is recorded, or its deadline has passed."""
    CANCELLED = "cancelled"
    """Its final result, `CANCELLED`, is recorded."""
    DEAD_LETTERED = "dead-lettered"
    """Kept among the dead letters; `async-processor dead` shows it."""
    UNKNOWN = "unknown"
    """Never submitted here, or forgotten since."""


class MemberParts(msgspec.Struct, frozen=True):
    """A member of the queue, open where the store writes the order of submission.

    The member is `head` + seq + `","enqueue_seq":` + seq + `tail`: `head` ends inside the string of the
    request token, right behind `token` and a dash. `deadline` is in whole Unix seconds. `payload` is
    stored apart when it is not empty.
    """

    id: str
    deadline: int
    token: str
    head: bytes
    tail: bytes
    payload: bytes = b""


class Queued(msgspec.Struct, frozen=True):
    """What became of one submission: its token; `is_new` is false if an earlier one stands for it."""

    token: str
    seq: int
    is_new: bool


class Submissions:
    """The producer's side of one Redis; queues are named with each call.

    With a `replication`, a submission counts once enough replicas have it; while they do not, `submit` raises
    `NotReplicated`, and is to be repeated.
    """

    def __init__(self, redis: Store, replication: Replication | None = None) -> None:
        self._replication = replication or Replication(redis, 0, 0)
        self._submit = lua_script(redis, "submit")
        self._cancel = lua_script(redis, "cancel")
        self._look_up = lua_script(redis, "look_up")
        self._redis = redis

    async def submit(
        self,
        queue: str,
        requests: Sequence[MemberParts],
        *,
        window_seconds: int = 0,
        is_repeated: bool = False,
    ) -> list[Queued]:
        """Queue `requests` in order, in one step; returns one `Queued` for each.

        `is_repeated` tells that the same call may have been made before, its answer lost: what is live
        under the same token, or was queued by that very call in the last two minutes, is not queued again.

        With a window, an id that is live, or was submitted with a window and has not been past its
        deadline for `window_seconds`, is not queued again: its first submission is returned.
        """
        if not requests:
            return []
        keys: list[str] = [queue, sent_key([(request.id, request.token) for request in requests])]
        arguments: list[str | bytes | int] = [window_seconds, int(is_repeated)]
        for request in requests:
            keys += (
                seq_key(queue, request.deadline),
                active_key(request.id),
                submitted_key(request.id),
                payload_key(request.id, request.token),
            )
            arguments += (request.deadline, request.token, request.head, request.tail, request.payload)
        answer = await self._replication.run(self._submit, keys, arguments)
        return [
            Queued(token=token.decode(), seq=int(seq), is_new=int(seq) > 0)
            for seq, token in zip(answer[::2], answer[1::2], strict=True)
        ]

    async def cancel(self, submissions: Sequence[tuple[str, str]]) -> list[bool]:
        """Cancel each (id, token); an empty token means whichever submission is live.

        Returns for each whether it was live, and is now cancelled.
        """
        if not submissions:
            return []
        keys = [key for id_, _ in submissions for key in (active_key(id_), cancel_key(id_))]
        answer: list[int] = await self._cancel(
            [CANCELLATIONS, *keys], [part for submission in submissions for part in submission]
        )
        return [bool(done) for done in answer]

    async def look_up(self, queue: str, request_id: str, token: str = "") -> tuple[RequestState, str]:
        """The state of a submission and its token; an empty token means whichever is live."""
        keys = [
            active_key(request_id),
            cancel_key(request_id),
            submitted_key(request_id),
            queue,
            claimed_key(queue),
        ]
        state, found = await read_only(self._redis, self._look_up, keys, [request_id, token])
        return RequestState(state.decode()), found.decode()

    async def depth(self, queue: str) -> int:
        """How many requests are pending in `queue`."""
        count: Any = await self._redis.zcard(queue)
        return int(count)

    async def are_live(self, request_ids: Sequence[str]) -> list[bool]:
        """Whether each id has a submission without a final result, before its deadline; one round trip."""
        pipeline = self._redis.pipeline(transaction=False)
        for request_id in request_ids:
            pipeline.exists(active_key(request_id))
        answer: list[int] = await executed(self._redis, pipeline)
        return [bool(exists) for exists in answer]
