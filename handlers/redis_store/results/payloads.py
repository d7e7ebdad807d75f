"""Offloaded payloads of requests and results (`payload_ref`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from redis.exceptions import NoPermissionError, ResponseError

from handlers.contract.lenient_json import Malformed
from handlers.contract.result import Result, decode_result, encode_result, filled_result
from handlers.redis_store.connection import Store, executed
from handlers.redis_store.keys import RESULT_PAYLOAD_PREFIX, is_own_payload
from handlers.redis_store.scripts import BATCH_BYTES, naming_key


async def read_payload(
    redis: Store, payload_ref: str, request_id: str, request_token: str, max_bytes: int
) -> bytes | None:
    """The payload under `payload_ref`. Raises one of `STORE_FAILURES`.

    None if the key is missing, not this request's, or of another type. A payload longer than `max_bytes` is cut after
    `max_bytes` + 1.
    """
    if not is_own_payload(payload_ref, request_id, request_token):
        return None
    return await _first_bytes(redis, payload_ref, max_bytes + 1)


async def _first_bytes(redis: Store, key: str, count: int) -> bytes | None:
    """The first `count` bytes of a string.

    None if it is missing or of another type. A client may write 500 MB there.
    """
    try:
        found = await redis.getrange(key, 0, count - 1)
    except NoPermissionError as error:
        raise await naming_key(redis, [key], error) from error
    except ResponseError as error:
        if not str(error).startswith("WRONGTYPE"):
            raise
        return None
    return (found.encode() if isinstance(found, str) else found) or None


_MARK: Final = b'"payload_ref"'
LARGEST_PAYLOAD: Final = 64_000_000
"""Bytes that are read of a payload whose result does not name its size."""


class StoredPayload(msgspec.Struct, frozen=True):
    """A payload to store under `key` for `seconds`."""

    key: str
    payload: bytes
    seconds: int


class WholeResult(msgspec.Struct, frozen=True):
    """A result's JSON with its payload. `payload_key` is set if the payload was offloaded."""

    text: bytes
    payload_key: str = ""


async def store_payloads(redis: Store, payloads: Sequence[StoredPayload]) -> None:
    """Store payloads in one round trip. Repeating it does no harm."""
    pipeline: Any = redis.pipeline(transaction=False)
    for one in payloads:
        pipeline.set(one.key, one.payload, ex=one.seconds)
    await executed(redis, pipeline)


async def delete_payloads(redis: Store, keys: Sequence[str]) -> None:
    """Delete payloads; missing ones are ignored."""
    for key in keys:
        await redis.unlink(key)


async def whole_result(redis: Store, text: bytes) -> WholeResult:
    """Read a result's offloaded payload. Costs a round trip only if there is one.

    A key of another type counts as a missing one: it must not keep its reader from other results.
    """
    result = _offloaded(text)
    if not result:
        return WholeResult(text)
    size = result.payload_size if result.payload_size > 0 else LARGEST_PAYLOAD
    payload = await _first_bytes(redis, result.payload_ref, size + 1)
    if payload and len(payload) > size:
        payload = None
    return WholeResult(encode_result(filled_result(result, payload)), result.payload_ref)


async def whole_results(redis: Store, texts: Sequence[bytes]) -> list[WholeResult]:
    """The first of `texts` with their offloaded payloads.

    At least one, together about `BATCH_BYTES`. Payloads are read one at a time: their sizes are unknown, and each may
    have several MB.
    """
    whole: list[WholeResult] = []
    size = 0
    for text in texts:
        whole.append(await whole_result(redis, text))
        size += len(whole[-1].text)
        if size >= BATCH_BYTES:
            break
    return whole


def _offloaded(text: bytes) -> Result | None:
    """The result, if its payload is offloaded to Redis."""
    if _MARK not in text:
        return None
    try:
        result = decode_result(text)
    except Malformed:
        return None  # the reader of the result reports the fault
    return result if result.payload_ref.startswith(RESULT_PAYLOAD_PREFIX) else None
