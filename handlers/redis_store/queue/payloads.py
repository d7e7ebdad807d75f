"""Payloads that are stored apart from their requests (`payload_ref`)."""

from __future__ import annotations

from redis.exceptions import ResponseError

from handlers.redis_store.connection import Store
from handlers.redis_store.keys import PAYLOAD_PREFIX


async def read_payload(redis: Store, payload_ref: str) -> bytes | None:
    """The payload under that key; None where there is none, or the key is none of a payload's or of another type.

    Raises one of `STORE_FAILURES`.
    """
    if not payload_ref.startswith(PAYLOAD_PREFIX):
        return None
    try:
        payload = await redis.get(payload_ref)
    except ResponseError as error:
        if not str(error).startswith("WRONGTYPE"):
            raise
        return None
    return payload.encode() if isinstance(payload, str) else payload
