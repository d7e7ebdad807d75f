"""Payloads that are stored apart from their requests (`payload_ref`)."""

from __future__ import annotations

from handlers.redis_store.connection import Store
from handlers.redis_store.keys import PAYLOAD_PREFIX


async def read_payload(redis: Store, payload_ref: str) -> bytes | None:
    """The payload under that key; None where there is none, or the key is none of a payload's.

    Raises one of `STORE_FAILURES`.
    """
    if not payload_ref.startswith(PAYLOAD_PREFIX):
        return None
    payload = await redis.get(payload_ref)
    return payload.encode() if isinstance(payload, str) else payload
