"""A queued member: a bare request body, or an envelope around one.

    {"internal": {…}, "request_kind": "plain" | "redis" | "pubsub", "data": { the body }}

Only the fields of `internal` route a request; fields of the same name in `data` are ignored. A bare body has no
`internal`, so its own `result_queue_name` counts. Unknown fields are kept when a request is queued again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from handlers.contract.errors import InvalidRequest
from handlers.contract.json_limits import MALFORMED, MAX_REQUEST_BYTES, salvage, shape_of
from handlers.contract.lenient_json import (
    Fields,
    Malformed,
    canonical_fields,
    check_json,
    pick,
    repaired,
    split_object,
    strings,
)
from handlers.contract.request import BODY_FIELDS, Request, decode_body

SEQ_STEPS: Final = 2**21
"""Steps per second of the score, which keep the order of submission among equal deadlines."""

ORIGINAL_SCORE: Final = "original_score"
"""Our own field of `internal`: the score of a member whose deadline and sequence do not give it."""


PREVIOUS_TRACEPARENT: Final = "previous_traceparent"
"""Our own field of `internal`: the span of the previous attempt, as a W3C traceparent."""


class Internal(msgspec.Struct, frozen=True):
    """The routing part of an envelope. Every field is optional on the wire."""

    retry_count: int = 0
    queue_id: str = ""
    request_token: str = ""
    request_queue_name: str = ""
    result_queue_name: str = ""
    transport_correlation_id: str = ""
    labels: Mapping[str, str | None] = msgspec.field(default_factory=dict)
    result_ttl_seconds: int | None = None
    result_routing_resolved: bool = False
    enqueue_seq: int = 0
    payload_ref: str = ""
    previous_traceparent: str = ""


class Envelope(msgspec.Struct, frozen=True):
    """A decoded member: the request, its routing, and its body's bytes."""

    request: Request
    internal: Internal
    data: bytes


_FRAME: Final = frozenset({"internal", "request_kind", "data"})
_STRUCTS: Final = frozenset({"internal"})
_INTERNAL: Final = frozenset(Internal.__struct_fields__)
_LABELS: Final = frozenset({"labels"})
_decoder = msgspec.json.Decoder(Internal)
_encoder = msgspec.json.Encoder()
_MOST_ATTEMPTS: Final = 1_000_000  # a larger count is invalid, and may be too long to encode again
_BARE: Final = Internal()
WHOLLY_READ_BYTES: Final = 1_024
"""Largest member that the Lua scripts read completely. Of larger ones they read the first 4 KB (`_member.lua`)."""

_ID, _TOKEN = ("data", "id"), ("internal", "request_token")
_RESULTS, _PAYLOAD = ("internal", "result_queue_name"), ("internal", "payload_ref")
_READABLE = frozenset({_ID, _TOKEN, _RESULTS, _PAYLOAD})
_WRONG_TYPE = re.compile(r"^Expected (?P<expected>.*?)(?:, got (?P<got>.*?))? - at `\$\.?(?P<path>[^`]*)`$")
"""msgspec's text: "Expected `str`, got `int` - at `$.x`" or "Expected `int` >= 0 - at `$.x`"."""
_OWN_RESULTS = frozenset({("result_queue_name",)})
_OWN_RESULT: Final = frozenset({"result_queue_name"})


def decode_member(member: bytes, queue: str, *, max_bytes: int = MAX_REQUEST_BYTES) -> Envelope:
    """Decode a member of the sorted set `queue`.

    Raises `InvalidRequest`, with the id, token, result queue and payload key if they can be read.
    """
    member = repaired(member)
    fields = _split(member)
    frame = _decode_frame(member, fields) if fields else None
    if frame is None:
        return _decode_bare(member, fields, queue, max_bytes)
    internal, data = frame
    try:
        request = decode_body(
            data,
            queue=queue,
            attempt=min(max(0, internal.retry_count), _MOST_ATTEMPTS),
            request_token=internal.request_token,
            result_queue_name=internal.result_queue_name,
            result_ttl_seconds=internal.result_ttl_seconds,
            result_routing_resolved=internal.result_routing_resolved,
            labels=strings(internal.labels),
            payload_ref=internal.payload_ref,
            previous_traceparent=internal.previous_traceparent,
            max_bytes=max_bytes,
        )
    except InvalidRequest as error:
        error.request_token = internal.request_token
        error.result_queue_name = internal.result_queue_name
        error.payload_ref = internal.payload_ref
        raise
    return Envelope(request=request, internal=internal, data=data)


def _decode_bare(member: bytes, fields: Fields | None, queue: str, max_bytes: int) -> Envelope:
    try:
        request = decode_body(member, queue=queue, max_bytes=max_bytes, fields=fields)
    except InvalidRequest as error:
        error.result_queue_name = salvage(member, _OWN_RESULTS).get(("result_queue_name",), "")
        raise
    return Envelope(request=request, internal=_BARE, data=member)


def _split(member: bytes) -> Fields | None:
    """The fields of the member. None if it is invalid and has no readable envelope."""
    try:
        return split_object(member)
    except Malformed:
        if not salvage(member, _READABLE):
            return None
        raise _invalid_frame(member, "invalid JSON, or too many levels of nesting") from None


def _decode_frame(member: bytes, fields: Fields) -> tuple[Internal, bytes] | None:
    """The routing and the body of an envelope. None for a bare body."""
    if fields.keys() <= BODY_FIELDS:
        return None
    try:
        parts = canonical_fields(member, _FRAME, structs=_STRUCTS, fields=fields)
        return (_decode_internal(parts), bytes(parts["data"])) if _is_framed(parts) else None
    except (Malformed, *MALFORMED) as error:
        raise _invalid_frame(member, _found(member, error)) from None


def _is_framed(parts: Fields) -> bool:
    return "data" in parts and ("internal" in parts or "request_kind" in parts)


def _decode_internal(parts: Fields) -> Internal:
    if (kind := bytes(parts.get("request_kind", b'"')))[:1] != b'"':
        raise msgspec.ValidationError(f"Expected `str`, got {shape_of(kind)} - at `$.request_kind`")
    if "internal" not in parts:
        return _BARE
    fields = canonical_fields(bytes(parts["internal"]), _INTERNAL, maps=_LABELS)
    return _decoder.decode(pick(fields, Internal.__struct_fields__))


def _found(member: bytes, error: Exception) -> str:
    """Describe the fault of a member: the wrong type and its field."""
    wrong = _WRONG_TYPE.search(str(error))
    if wrong is None:
        return shape_of(member, error)
    path = wrong["path"] if wrong["path"] == "request_kind" else f"internal.{wrong['path']}".rstrip(".")
    return (wrong["got"] or f"a value that is not {wrong['expected']}") + f" in {path}"


def unread(member: bytes, found: str) -> InvalidRequest:
    """An `InvalidRequest` for a member, without decoding it; takes bounded time."""
    return _invalid_frame(member, found)


def _invalid_frame(member: bytes, found: str) -> InvalidRequest:
    read = salvage(member, _READABLE | {("id",)})
    return InvalidRequest(
        "envelope",
        found=found.replace("`", ""),
        accepted="one JSON object with internal, request_kind and data",
        request_id=read.get(_ID) or read.get(("id",), ""),
        request_token=read.get(_TOKEN, ""),
        result_queue_name=read.get(_RESULTS, ""),
        payload_ref=read.get(_PAYLOAD, ""),
    )


def with_payload(envelope: Envelope, payload: bytes, *, max_bytes: int = MAX_REQUEST_BYTES) -> Envelope:
    """Put an offloaded payload into the envelope's request and body.

    Raises `InvalidRequest` if the payload is not a JSON object or null, or if the body exceeds `max_bytes`.
    """
    try:
        # The payload is checked alone: text such as `{},"id":"b"` is invalid, but inserted into a body it would be
        # valid and change other fields.
        payload = repaired(payload)
        check_json(payload)
    except Malformed as error:
        request_id = envelope.request.id
        raise InvalidRequest(
            "payload",
            found=f"{shape_of(payload, error)}, offloaded",
            accepted="a JSON object, or null",
            request_id=request_id,
        ) from None
    parts = split_object(envelope.data)
    data = _encoder.encode({**parts, "payload": msgspec.Raw(payload)})
    checked = decode_body(data, max_bytes=max_bytes)
    request = msgspec.structs.replace(envelope.request, payload=checked.payload)
    return msgspec.structs.replace(envelope, request=request, data=data)


def encode_whole(member: bytes, data: bytes) -> bytes:
    """Encode a member with its payload inside and without `payload_ref`.

    `data` is the body that `with_payload` returned.
    """
    parts = canonical_fields(repaired(member), _FRAME, structs=_STRUCTS)
    internal = _internal_parts(parts)
    internal.pop("payload_ref", None)
    return _encoder.encode({**parts, "internal": internal, "data": msgspec.Raw(data)})


def encode_retry(member: bytes, *, queue: str, attempt: int, score: float, traceparent: str = "") -> bytes:
    """Encode a member for the retry set. All other fields are kept.

    `queue` is the sorted set to which it returns, `attempt` the number of attempts so far. `score` is its score when it
    was claimed; it is stored if deadline and sequence do not give it, or if the member is large. `traceparent` is the
    span of the last attempt, or empty.
    """
    member = repaired(member)
    parts = canonical_fields(member, _FRAME, structs=_STRUCTS)
    if not _is_framed(parts):
        parts = _wrapped(member)
    given = _internal_parts(parts)
    # The queue to return to comes first, because the Lua scripts read only the beginning of a large member.
    internal = {"retry_count": _raw(attempt), "request_queue_name": _raw(queue)}
    if len(member) > WHOLLY_READ_BYTES or score != _derived_score(parts["data"], given):
        internal[ORIGINAL_SCORE] = _raw(score)
    internal = {**internal, **{name: value for name, value in given.items() if name not in internal}}
    if traceparent:
        internal[PREVIOUS_TRACEPARENT] = _raw(traceparent)
    others = {name: value for name, value in parts.items() if name != "internal"}
    return _encoder.encode({"internal": internal, **others})  # `internal` first, as the reference writes it


def _wrapped(body: bytes) -> Fields:
    """Wrap a bare body in an envelope with the body's result queue."""
    parts = {"request_kind": msgspec.Raw(b'"plain"'), "data": msgspec.Raw(body)}
    own = canonical_fields(body, _OWN_RESULT)
    if "result_queue_name" in own:
        parts["internal"] = msgspec.Raw(pick(own, _OWN_RESULT))
    return parts


def _internal_parts(parts: Fields) -> Fields:
    """The fields of `internal` that are not null."""
    if "internal" not in parts:
        return {}
    fields = canonical_fields(bytes(parts["internal"]), _INTERNAL, maps=_LABELS)
    return {name: value for name, value in fields.items() if bytes(value) != b"null"}


def _derived_score(data: msgspec.Raw, internal: Mapping[str, msgspec.Raw]) -> float:
    body = bytes(data)
    deadline = decode_body(body, payload_ref="?", max_bytes=len(body)).deadline  # the size was checked before
    seq = msgspec.json.decode(internal["enqueue_seq"]) if "enqueue_seq" in internal else 0
    return score_of(deadline, int(seq or 0))


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(_encoder.encode(value))


def score_of(deadline: float, enqueue_seq: int = 0) -> float:
    """The score in the sorted set: deadline plus a fraction.

    The fraction keeps the order of requests with equal deadlines.
    """
    return deadline + min(max(0, enqueue_seq), SEQ_STEPS - 1) / SEQ_STEPS
