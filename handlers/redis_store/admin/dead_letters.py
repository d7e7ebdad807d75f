"""The dead letters of a queue: list, requeue and drop them.

The poller writes each record, a JSON object: `reason`, `message`, `at` (Unix seconds), `deaths` (crashed owners),
`queue`, `score`, and the member itself (`member`, or `member_base64` if it is not UTF-8).
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Final

import msgspec

from handlers.contract.errors import InvalidRequest
from handlers.contract.request import decode_member
from handlers.redis_store.admin.status_board import read_part
from handlers.redis_store.connection import Store
from handlers.redis_store.keys import queue_keys
from handlers.redis_store.scripts import lua_script


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """One dead letter; in Redis, `dead_id` is the field of its record."""

    dead_id: str = ""
    reason: str = ""
    message: str = ""
    at: float = 0.0
    delivery_count: int = msgspec.field(default=0, name="deaths")
    queue: str = ""
    score: float = 0.0
    member_text: str = msgspec.field(default="", name="member")
    member_base64: str = ""

    @property
    def member(self) -> bytes:
        """The queued bytes."""
        return base64.b64decode(self.member_base64) if self.member_base64 else self.member_text.encode()

    @property
    def request_id(self) -> str:
        """The id of the request in `member`; empty if it cannot be read."""
        try:
            return decode_member(self.member, self.queue).request.id
        except InvalidRequest as error:
            return error.request_id

    def hopeless_because(self, now: float) -> str:
        """Why a poller can only refuse the request again; empty if it may succeed. `now` is in Unix seconds."""
        try:
            request = decode_member(self.member, self.queue).request
        except InvalidRequest as error:
            return str(error)
        return "its deadline has passed" if request.deadline <= now else ""


_AT_ONCE: Final = 500
_LONGEST: Final = 1 << 40
"""Larger than any record, so that each is returned complete."""

_decoder = msgspec.json.Decoder(DeadLetter)


class DeadLetters:
    """The dead letters of one queue. Methods raise one of `STORE_FAILURES`."""

    def __init__(self, redis: Store, queue: str, *, cluster: bool = False) -> None:
        self.queue = queue
        self._redis = redis
        self._keys = queue_keys(queue, cluster=cluster)
        self._requeue = lua_script(redis, "requeue_dead")

    async def count(self) -> int:
        return int(await self._redis.hlen(self._keys.dead))

    async def all(self) -> AsyncIterator[DeadLetter]:
        """All dead letters, unordered, read about 1 MB at a time."""
        cursor, is_done = "0", False
        while not is_done:
            part = await read_part(self._redis, "HSCAN", self._keys.dead, cursor, entries=_AT_ONCE, longest=_LONGEST)
            for dead_id, record, _ in part.rows:
                yield read_dead_letter(dead_id, record)
            cursor = part.cursor
            is_done = cursor == "0"

    async def get(self, dead_id: str) -> DeadLetter | None:
        """The dead letter with that id; None if it no longer exists."""
        record = await self._redis.hget(self._keys.dead, dead_id)
        return None if record is None else read_dead_letter(dead_id.encode(), _as_bytes(record))

    async def beginning_with(self, prefix: str) -> list[DeadLetter]:
        """Dead letters whose id begins with `prefix`. An exact match is returned alone."""
        exact = await self.get(prefix)
        if exact is not None or not prefix:
            return [exact] if exact else []
        return [letter async for letter in self.all() if letter.dead_id.startswith(prefix)]

    async def requeue(self, letter: DeadLetter) -> bool:
        """Queue the letter's member again with its score. False if the dead letter no longer exists."""
        done = await self._requeue(
            keys=[self._keys.dead, self._keys.pending],
            args=[letter.dead_id, letter.member, repr(letter.score)],
        )
        return bool(done)

    async def drop(self, dead_id: str) -> bool:
        """Delete the dead letter; False if it no longer exists."""
        return bool(await self._redis.hdel(self._keys.dead, dead_id))


def _as_bytes(value: bytes | str) -> bytes:
    return value if isinstance(value, bytes) else value.encode()


def read_dead_letter(dead_id: bytes, text: bytes) -> DeadLetter:
    """Decode a record of the hash."""
    return msgspec.structs.replace(_decoder.decode(text), dead_id=dead_id.decode())
