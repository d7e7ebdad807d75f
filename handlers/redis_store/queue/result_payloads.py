"""Payloads of results that are stored apart: written before their result, read and deleted with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from handlers.contract.lenient_json import Malformed
from handlers.contract.result import decode_result, encode_result, filled_result
from handlers.redis_store.connection import Store, executed
from handlers.redis_store.submit.submission_keys import RESULT_PAYLOAD_PREFIX

_MARK: Final = b'"payload_ref"'


@dataclass(frozen=True, slots=True)
class StoredPayload:
    """A payload and the key where it is kept for `seconds`."""

    key: str
    payload: bytes
    seconds: int


@dataclass(frozen=True, slots=True)
class WholeResult:
    """A result's JSON with its payload; `payload_key` is where that was, empty if it stood in the result."""

    text: bytes
    payload_key: str = ""


async def store_payloads(redis: Store, payloads: Sequence[StoredPayload]) -> None:
    """Keep payloads, one round trip. Repeating it does no harm."""
    pipeline: Any = redis.pipeline(transaction=False)
    for one in payloads:
        pipeline.set(one.key, one.payload, ex=one.seconds)
    await executed(redis, pipeline)


async def delete_payloads(redis: Store, keys: Sequence[str]) -> None:
    """Delete payloads that nobody will ask for; those that are gone do not matter."""
    for key in keys:
        await redis.unlink(key)


async def whole_results(redis: Store, texts: Sequence[bytes]) -> list[WholeResult]:
    """Results as their readers want them: with payloads that were stored apart, in one round trip if there are any."""
    keys = [_payload_key(text) for text in texts]
    wanted = [key for key in keys if key]
    if not wanted:
        return [WholeResult(text) for text in texts]
    pipeline: Any = redis.pipeline(transaction=False)
    for key in wanted:
        pipeline.get(key)
    found = iter(await executed(redis, pipeline))
    return [
        WholeResult(encode_result(filled_result(decode_result(text), next(found))), key)
        if key
        else WholeResult(text)
        for text, key in zip(texts, keys, strict=True)
    ]


def _payload_key(text: bytes) -> str:
    """Where a result's payload is, if it is stored apart."""
    if _MARK not in text:
        return ""
    try:
        key = decode_result(text).payload_ref
    except Malformed:
        return ""  # not ours to judge: its reader does
    return key if key.startswith(RESULT_PAYLOAD_PREFIX) else ""
