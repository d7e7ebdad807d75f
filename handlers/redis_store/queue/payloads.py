"""Payloads that are stored apart from their requests (`payload_ref`)."""

from __future__ import annotations

from redis.exceptions import ResponseError

from handlers.redis_store.connection import Store
from handlers.redis_store.keys import PAYLOAD_PREFIX


def is_own_payload(payload_ref: str, request_id: str, request_token: str) -> bool:
    """Whether the key is the one of this request: `request-payload:<id>:<token>`.

    A token of our client ends with the request's place in the queue, which its payload's key (`payload_key`) lacks. A
    token has no colon, or "a" with the token "b:c" would be taken for "a:b" with the token "c".
    """
    token = payload_ref.removeprefix(f"{PAYLOAD_PREFIX}{request_id}:")
    if not request_id or token in ("", payload_ref) or ":" in token:
        return False
    if not request_token or token == request_token:
        return True
    without_place, _, place = request_token.rpartition("-")
    return place.isdigit() and token == without_place


async def read_payload(redis: Store, payload_ref: str, request_id: str, request_token: str) -> bytes | None:
    """The payload under that key; None where there is none, or the key is not this request's, or of another type.

    Raises one of `STORE_FAILURES`.
    """
    if not is_own_payload(payload_ref, request_id, request_token):
        return None
    try:
        payload = await redis.get(payload_ref)
    except ResponseError as error:
        if not str(error).startswith("WRONGTYPE"):
            raise
        return None
    return payload.encode() if isinstance(payload, str) else payload
