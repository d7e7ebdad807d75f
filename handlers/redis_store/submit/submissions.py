"""Connections of clients; submission, cancellation and look-up of requests.

Every operation is one `.lua` file and one round trip, however many requests it carries. Connections do not retry
automatically: callers retry with `is_repeated=True`, which keeps a submission idempotent (see `submit.lua`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import msgspec
from redis.exceptions import AskError, ClusterError, ReadOnlyError, RedisClusterException, TryAgainError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from handlers.number_text import whole
from handlers.redis_store.connection import NotReplicated, RedisOptions, Store, connect, executed
from handlers.redis_store.idempotency.idempotency import (
    KeyRecord,
    encode_record,
    key_record_name,
    split_record,
)
from handlers.redis_store.keys import (
    CANCELLATIONS,
    LONGEST_TEXT_BYTES,
    active_key,
    cancel_key,
    claimed_key,
    payload_key,
    sent_key,
    seq_key,
    submitted_key,
)
from handlers.redis_store.scripts import Replication, lua_script, read_only

TRANSIENT_ERRORS: Final = (
    NotReplicated,
    RedisConnectionError,
    RedisTimeoutError,
    OSError,
    ReadOnlyError,
    ClusterError,
    AskError,
    TryAgainError,
    RedisClusterException,
)
"""Failures worth a retry: connection lost, reply lost, failover, slot migration."""

CALL_TIMEOUT_SECONDS: Final = 10.0
CONNECTIONS: Final = 64


@dataclass(frozen=True, slots=True)
class RedisAccess:
    """A client's credentials and certificates, which do not belong in a URL.

    `username` and `password` override the URL's. `password_file` overrides both passwords and is read for every new
    connection, so that a secret may rotate. `ca_file` (PEM) is the CA of the server's certificate; empty means the
    system's CAs. `cert_file` and `key_file` are the client's own certificate. `timeout_seconds` is the longest wait for
    a connection; if it is longer than 10 seconds, also the longest time without data during a call.
    """

    username: str = ""
    password: str = field(default="", repr=False)
    password_file: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    timeout_seconds: float = 2.0

    def current_password(self) -> str:
        """The current password. Raises `OSError` or `ValueError` if its file cannot be read."""
        if not self.password_file:
            return self.password
        return Path(self.password_file).read_text(encoding="utf-8").strip()


def client_options(url: str, access: RedisAccess | None = None) -> RedisOptions:
    """Connection options of a client for the Redis at `url`."""
    access = access or RedisAccess()
    return RedisOptions(
        url,
        username=access.username,
        password=access.current_password,
        ca_file=access.ca_file,
        cert_file=access.cert_file,
        key_file=access.key_file,
        timeout_seconds=max(CALL_TIMEOUT_SECONDS, access.timeout_seconds),
        connect_timeout_seconds=access.timeout_seconds,
        max_connections=CONNECTIONS,
    )


def open_redis(url: str, access: RedisAccess | None = None) -> Store:
    """Return a client, which connects with its first call. Raises `InvalidSetting` for an invalid URL."""
    return connect(client_options(url, access))


class RequestState(StrEnum):
    """Where a submission is now."""

    PENDING = "pending"
    """In the queue, waiting to be claimed."""
    CLAIMED = "claimed"
    """Held by a poller: at a gate, or in flight."""
    RETRYING = "retrying"
    """Attempted at least once, waiting for its next attempt (due, or not yet)."""
    QUEUED = "queued"
    """Pending or retrying; without a sequence in this producer's token, the two cannot be distinguished."""
    ELSEWHERE = "elsewhere"
    """Live, but not in the queues that `where` searched."""
    CANCELLING = "cancelling"
    """Cancelled; its `CANCELLED` result is on the way."""
    FINISHED = "finished"
    """Its final result is recorded, or its deadline has passed."""
    CANCELLED = "cancelled"
    """Its final result, `CANCELLED`, is recorded."""
    DEAD_LETTERED = "dead-lettered"
    """Kept among the dead letters; `async-processor dead` shows it."""
    UNKNOWN = "unknown"
    """Never submitted here, or its record expired."""


class MemberParts(msgspec.Struct, frozen=True):
    """A member of the queue, split where the store inserts the sequence.

    The member is `head` + seq + `","enqueue_seq":` + seq + `tail`: `head` ends inside the string of the request token,
    after `token` and a dash. `deadline` is in whole Unix seconds. `payload` is offloaded if it is not empty. With an
    idempotency key, `token` is from `keyed_token` and `record` is stored: until `window_seconds` after the result is
    acknowledged, or, if it never is, until `unread_seconds + window_seconds` after the deadline.
    """

    id: str
    deadline: int
    token: str
    head: bytes
    tail: bytes
    payload: bytes = b""
    record: KeyRecord | None = None
    window_seconds: int = 0
    unread_seconds: int = 0

    @property
    def record_text(self) -> bytes:
        """The record as stored after the token. Empty without an idempotency key."""
        return encode_record(self.record, self.window_seconds) if self.record else b""

    @property
    def submitted_key(self) -> str:
        """The Redis key that records the request's idempotency key, or its id."""
        return key_record_name(self.token) if self.record else submitted_key(self.id)

    def window(self, id_window_seconds: int) -> int:
        """Seconds after the deadline until `submitted_key` expires; `id_window_seconds` without a key."""
        return self.unread_seconds + self.window_seconds if self.record else id_window_seconds


class Queued(msgspec.Struct, frozen=True):
    """The outcome of one submission: its token and sequence.

    If it was not queued because of an earlier submission, `is_new` is false, `token` is the token of the earlier
    submission, and `record` is set if the earlier submission has an idempotency key.
    """

    token: str
    seq: int
    is_new: bool
    record: KeyRecord | None = None


def queued_as(part: MemberParts, token: str, record: KeyRecord | None) -> Queued:
    """The outcome if `token` (its own, or that of an earlier submission) is recorded."""
    base, _, seq = token.rpartition("-")
    is_new = base == part.token
    return Queued(token, (whole(seq) or 0) if is_new else 0, is_new, None if is_new else record)


class Submissions:
    """Queues, cancels and looks up requests. The queue is an argument of each call.

    With a `replication`, a submission succeeds once enough replicas have it. Until then `submit` raises
    `NotReplicated`; repeat the call.
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

        `is_repeated`: the reply of an equal call may have been lost. Requests that are live under the same token, or
        were queued by that call in the last two minutes, are not queued again.

        With a window, an id is not queued again, and its earlier submission is returned, if that is live or still in
        its own window. A submission's window ends `window_seconds` after its deadline, even if it has finished. For a
        request with an idempotency key, its key and its own window count instead.
        """
        if not requests:
            return []
        keys: list[str] = [queue, sent_key([(request.id, request.token) for request in requests])]
        arguments: list[str | bytes | int] = [int(is_repeated)]
        for request in requests:
            keys += (
                seq_key(queue, request.deadline),
                active_key(request.id),
                request.submitted_key,
                payload_key(request.id, request.token),
            )
            arguments += (request.deadline, request.token, request.head, request.tail, request.payload)
            arguments += (request.window(window_seconds), request.record_text)
        answer = await self._replication.run(self._submit, keys, arguments)
        queued = []
        for request, seq, value in zip(requests, answer[::2], answer[1::2], strict=True):
            token, record = split_record(value)
            is_new = int(seq) > 0
            queued.append(Queued(token, int(seq), is_new=True) if is_new else queued_as(request, token, record))
        return queued

    async def recorded(self, requests: Sequence[MemberParts]) -> dict[str, KeyRecord]:
        """Records of earlier submissions under the requests' idempotency keys, by `submitted_key`."""
        keys = [request.submitted_key for request in requests if request.record]
        if not keys:
            return {}
        pipeline = self._redis.pipeline(transaction=False)
        for key in keys:
            pipeline.getrange(key, 0, LONGEST_TEXT_BYTES)
        values = await executed(self._redis, pipeline)
        found = {key: self._record_in(value) for key, value in zip(keys, values, strict=True) if value}
        return {key: record for key, record in found.items() if record}

    def _record_in(self, value: bytes) -> KeyRecord | None:
        return split_record(value)[1]

    async def cancel(self, submissions: Sequence[tuple[str, str]]) -> list[bool]:
        """Cancel each (id, token). An empty token means the live submission.

        Returns for each whether it was live, and so is cancelled now.
        """
        if not submissions:
            return []
        keys = [key for id_, _ in submissions for key in (active_key(id_), cancel_key(id_))]
        answer: list[int] = await self._cancel(
            [CANCELLATIONS, *keys], [part for submission in submissions for part in submission]
        )
        return [bool(done) for done in answer]

    async def look_up(self, queue: str, request_id: str, token: str = "") -> tuple[RequestState, str]:
        """The state of a submission and its token. An empty token means the live submission."""
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
        count: Any = await self._redis.zcard(queue)
        return int(count)

    async def are_live(self, request_ids: Sequence[str]) -> list[bool]:
        """Whether each id has a submission that is neither answered nor overdue."""
        pipeline = self._redis.pipeline(transaction=False)
        for request_id in request_ids:
            pipeline.exists(active_key(request_id))
        answer: list[int] = await executed(self._redis, pipeline)
        return [bool(exists) for exists in answer]
