"""Encode a queue member as the reference's producer writes it: an envelope of kind `redis`."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from handlers.client.new_request import CheckedRequest
from handlers.redis_store.submit.submissions import MemberParts

_encoder = msgspec.json.Encoder()


def member_parts(
    body: CheckedRequest,
    *,
    token: str,
    queue: str,
    results: str,
    labels: Mapping[str, str],
    own_result_seconds: int | None = None,
    payload_ref: str = "",
) -> MemberParts:
    """The member around `body`, without the field for its place in the queue.

    With `own_result_seconds`, `results` belongs to this request alone and is kept for that long, and the queue's own
    settings must not send the result elsewhere. With `payload_ref`, the payload is offloaded.
    """
    internal: dict[str, object] = {"request_queue_name": queue, "result_queue_name": results}
    if own_result_seconds is not None:
        internal |= {"result_ttl_seconds": own_result_seconds, "result_routing_resolved": True}
    if labels:
        internal["labels"] = dict(labels)
    if payload_ref:
        internal["payload_ref"] = payload_ref
    routing = _encoder.encode(internal)[:-1]
    data = body.without_payload if payload_ref else body.whole
    return MemberParts(
        id=body.id,
        deadline=body.deadline,
        token=token,
        # `submit.lua` adds the missing field between head and tail, so the text must be closed there.
        head=b'{"internal":%b,"request_token":"%b-' % (routing, token.encode()),
        tail=b'},"request_kind":"redis","data":%b}' % data,
        payload=body.payload if payload_ref else b"",
    )
