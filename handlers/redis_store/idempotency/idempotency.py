"""Records that make a repeated submission or delivery a no-op.

Ids: while a submission of an id is live, and for some seconds more, its record blocks other submissions of that id.

Idempotency keys: a submission with a key is recorded under `request-submitted:<NUL><digest of queue and key>` (an id
contains no NUL, so no id's record has that name). The value is `<token> <window> <JSON of KeyRecord>`. The digest is
part of the request token, which the result carries. So a reader that acknowledges the result finds the record
(`acknowledge_key.lua`).

Pub/Sub deliveries, which may arrive twice, even at the same time: the record of a delivery is one key,
`delivery:<length>:<subscription>:<length>:<id>:<generation>`, a hash. While the delivery is being answered, the hash
has an `owner` and expires with the owner's lease. Once it is answered, the hash has a `reference` and expires after
`keep_seconds`. With tracing, an abandoned attempt leaves its span as `previous` for the next one. All times are the
server's.

Calls raise one of `connection.STORE_FAILURES`.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final, TypeAlias

import msgspec
from redis.commands.core import AsyncScript
from redis.exceptions import NoScriptError

from handlers.contract.errors import InvalidSetting
from handlers.number_text import decimal
from handlers.redis_store.connection import Store, executed
from handlers.redis_store.keys import id_record_key, submitted_key
from handlers.redis_store.scripts import lua_script


class RunState(StrEnum):
    """Whether a submission may run, and if not, why."""

    RUNS = "runs"
    REPEATED = "repeated"
    """This submission is finished; it was queued or reclaimed again."""
    LIVE = "live"
    FINISHED = "finished"


class IdRecord(msgspec.Struct, frozen=True):
    """The idempotency record of a submission in its queue.

    `known_by` names the submission. The record is kept for `seconds` after it is finished. A dead-lettered submission
    (`is_dead`) runs if it is queued again.
    """

    request_id: str
    known_by: str
    seconds: int
    is_dead: bool = False
    queue: str = ""


async def record_for_id(redis: Store, record: IdRecord, deadline: float) -> RunState:
    """Record a submission and return whether it may run.

    `deadline` is in Unix seconds. Raises one of `STORE_FAILURES`.
    """
    until_ms = int((deadline + record.seconds) * 1_000)
    script = lua_script(redis, "record_for_id")
    answer = await script(keys=[id_record_key(record.request_id, record.queue)], args=[record.known_by, until_ms])
    return RunState(answer.decode())


async def finish_id_record(redis: Store, records: Sequence[IdRecord]) -> None:
    """Mark submissions as finished. Their ids do not run again for `seconds`."""
    script = lua_script(redis, "finish_id_record")
    # One call each, since a cluster keeps the keys in different slots; all in one pipeline.
    rows = [(id_record_key(one.request_id, one.queue), one.known_by, one.seconds, int(one.is_dead)) for one in records]
    try:
        await _finished(redis, script, rows)
    except NoScriptError:
        await redis.script_load(script.script)
        await _finished(redis, script, rows)


async def _finished(redis: Store, script: AsyncScript, rows: Sequence[tuple[str, str, int, int]]) -> None:
    pipeline = redis.pipeline(transaction=False)
    for row in rows:
        pipeline.execute_command("EVALSHA", script.sha, 1, *row)
    await executed(redis, pipeline)


DELIVERY_PREFIX: Final = "delivery:"
"""Prefix of the records' keys, so that no id can name another key."""

_LONGEST_TIME: Final = 32
_TAKEN, _HELD, _ANSWERED = 0, 1, 2  # what begin_delivery.lua returns


class Fresh(msgspec.Struct, frozen=True):
    """The caller holds the delivery and must answer it. No other caller gets it during the lease.

    `previous_traceparent` is the trace span of an abandoned attempt, if there is one.
    """

    previous_traceparent: str = ""


class InProgress(msgspec.Struct, frozen=True):
    """Another delivery of the request is being answered. Its lease ends in `seconds_left`."""

    seconds_left: float


class AlreadyAnswered(msgspec.Struct, frozen=True):
    """The delivery was answered. `reference` is the argument that `finish` got."""

    reference: bytes


Beginning: TypeAlias = Fresh | InProgress | AlreadyAnswered


class DedupOptions(msgspec.Struct, frozen=True):
    """Lifetimes of a delivery's record.

    A crashed owner blocks a delivery for `lease_seconds`, a third of which is the interval of renewals. An answered
    delivery is known for `keep_seconds`: Pub/Sub may deliver again for seven days (the subscription's retention), but
    usually does so within minutes. The span of an abandoned attempt is kept for `span_seconds`, twice the longest
    backoff of a subscription.
    """

    lease_seconds: float = 15.0
    keep_seconds: float = 86_400.0
    span_seconds: float = 1_200.0

    def __post_init__(self) -> None:
        for name in ("lease_seconds", "keep_seconds", "span_seconds"):
            if not getattr(self, name) > 0:
                raise InvalidSetting(name, found=str(getattr(self, name)), accepted="a number above 0")


class DeliveryRecords:
    """The records in one Redis. `owner` is a random token for one attempt to answer a delivery."""

    def __init__(self, redis: Store, options: DedupOptions | None = None) -> None:
        self.options = options or DedupOptions()
        self._lease_ms = max(1, round(self.options.lease_seconds * 1000))
        self._keep_ms = max(1, round(self.options.keep_seconds * 1000))
        self._span_ms = max(1, round(self.options.span_seconds * 1000))
        self._begin = lua_script(redis, "begin_delivery")
        self._renew = lua_script(redis, "renew_delivery")
        self._finish = lua_script(redis, "finish_delivery")
        self._abandon = lua_script(redis, "abandon_delivery")

    async def begin(self, key: str, owner: str) -> Beginning:
        """Take the delivery, unless it is held or answered."""
        outcome, value = await self._begin([key], [owner, self._lease_ms])
        if outcome == _TAKEN:
            return Fresh(bytes(value).decode())
        if outcome == _HELD:
            return InProgress(max(0, int(value)) / 1000)
        assert outcome == _ANSWERED  # noqa: S101  # a fourth would be a fault of the script
        return AlreadyAnswered(bytes(value))

    async def renew(self, key: str, owner: str) -> bool:
        """Extend the lease. False if it was lost, so another owner may be answering."""
        return bool(await self._renew([key], [owner, self._lease_ms]))

    async def finish(self, key: str, owner: str, reference: bytes) -> bool:
        """Record the answer's `reference`; False if another owner took the delivery."""
        return bool(await self._finish([key], [owner, reference, self._keep_ms]))

    async def abandon(self, key: str, owner: str, traceparent: str = "") -> bool:
        """Release the delivery unanswered. It can be taken again at once.

        False if the lease was lost. `traceparent` is the span of this attempt, to which the next one links.
        """
        return bool(await self._abandon([key], [owner, traceparent, self._span_ms]))


def delivery_key(request_id: str, request_token: str, body: bytes, subscription: str = "") -> str:
    """The key of a request's record.

    The key contains the subscription, since another subscription may receive the same bytes. An id may be reused for a
    later request, so the key also contains the request token, or without a token the digest of the request: a
    publisher's retry has the same bytes, while a new request has another deadline.
    """
    generation = request_token or hashlib.sha256(body).hexdigest()
    names = f"{len(subscription)}:{subscription}:{len(request_id)}:{request_id}"
    return f"{DELIVERY_PREFIX}{names}:{generation}"


_KEPT_SECONDS: Final = 604_800


def delivery_cancel_key(request_id: str) -> str:
    """STRING: when the id was cancelled, Unix seconds."""
    return f"delivery-cancel:{request_id}"


async def cancel_deliveries(redis: Store, request_ids: Sequence[str], at: float) -> None:
    """Cancel requests submitted under these ids up to `at` (Unix seconds).

    Raises one of `STORE_FAILURES`.
    """
    pipeline: Any = redis.pipeline(transaction=False)
    for request_id in request_ids:
        pipeline.set(delivery_cancel_key(request_id), f"{at:.3f}", ex=_KEPT_SECONDS)
    await executed(redis, pipeline)


async def deliveries_cancelled_at(redis: Store, request_ids: Sequence[str]) -> list[float | None]:
    """When each id was cancelled (Unix seconds), or None. Raises one of `STORE_FAILURES`."""
    pipeline: Any = redis.pipeline(transaction=False)
    for request_id in request_ids:
        pipeline.getrange(delivery_cancel_key(request_id), 0, _LONGEST_TIME)
    return [decimal(text) for text in await executed(redis, pipeline)]


_DIGEST_LENGTH: Final = 40
_TOKEN = re.compile(rb'"request_token"\s*:\s*"(i[0-9a-f]{%d}[0-9a-f]{16}-[0-9]+)"' % _DIGEST_LENGTH)


class KeyRecord(msgspec.Struct, frozen=True):
    """A submission under an idempotency key. `deadline` is in Unix seconds, `content` a SHA-256 in hex."""

    content: str
    id: str
    deadline: int
    results: str


_record_decoder = msgspec.json.Decoder(KeyRecord)


def keyed_token(queue: str, key: str) -> str:
    """A new request token for a submission under `key`, without its sequence."""
    name = hashlib.sha256(f"{len(queue)}:{queue}:{key}".encode()).hexdigest()[:_DIGEST_LENGTH]
    return f"i{name}{secrets.token_hex(8)}"


def key_record_name(token: str) -> str:
    """The Redis key of a record. `token` is from `keyed_token`, with or without its sequence."""
    return submitted_key(f"\0{token[1 : 1 + _DIGEST_LENGTH]}")


def encode_record(record: KeyRecord, window_seconds: int) -> bytes:
    """The value's part after the token. `window_seconds` count from the acknowledgement of the result."""
    return b" %d %b" % (window_seconds, msgspec.json.encode(record))


def split_record(value: bytes) -> tuple[str, KeyRecord | None]:
    """The token and the record of a `request-submitted:…` value. An id's value has no record."""
    token, _, rest = value.partition(b" ")
    return token.decode(), _record_decoder.decode(rest.partition(b" ")[2]) if rest else None


def keyed_token_of(result: bytes) -> str:
    """The token in a result's JSON, if `keyed_token` made it; else empty."""
    found = _TOKEN.search(result)
    return found[1].decode() if found else ""


class KeyAcknowledgements:
    """Lets keys expire once their results are acknowledged. Raises one of `STORE_FAILURES`."""

    def __init__(self, redis: Store) -> None:
        self._redis = redis
        # Called by its text: pipelines cannot load a missing script.
        self._script = str(lua_script(redis, "acknowledge_key").script)

    async def acknowledge(self, tokens: Sequence[str]) -> None:
        """Let the keys of these tokens expire after their windows. Repeating it changes nothing."""
        if not tokens:
            return
        pipeline = self._redis.pipeline(transaction=False)
        for token in tokens:
            pipeline.eval(self._script, 1, key_record_name(token), token)
        await executed(self._redis, pipeline)
