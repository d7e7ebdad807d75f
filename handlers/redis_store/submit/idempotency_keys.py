"""Records of idempotency keys: the submission made under each, and its expiry.

A submission with a key is recorded under `request-submitted:<NUL><digest of queue and key>` (an id contains no NUL, so
no id's record has that name). The value is `<token> <window> <JSON of KeyRecord>`. The digest is part of the request
token, which the result carries. So a reader that acknowledges the result finds the record (`acknowledge_key.lua`).
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from typing import Final

import msgspec

from handlers.redis_store.connection import Store, executed
from handlers.redis_store.keys import submitted_key
from handlers.redis_store.scripts import lua_script

_DIGEST_LENGTH: Final = 40
_TOKEN = re.compile(rb'"request_token"\s*:\s*"(i[0-9a-f]{%d}[0-9a-f]{16}-[0-9]+)"' % _DIGEST_LENGTH)


class KeyRecord(msgspec.Struct, frozen=True):
    """A submission under an idempotency key. `deadline` is in Unix seconds, `content` a SHA-256 in hex."""

    content: str
    id: str
    deadline: int
    results: str


_decoder = msgspec.json.Decoder(KeyRecord)


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
    return token.decode(), _decoder.decode(rest.partition(b" ")[2]) if rest else None


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
