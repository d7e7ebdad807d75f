"""A request as a client queued it: its JSON body, and the queued member with that body.

A member is a bare body or an envelope:

    {"internal": {…}, "request_kind": "plain" | "redis" | "pubsub", "data": { the body }}

Only the fields of `internal` route a request; fields of the same name in `data` are ignored. A bare body has no
`internal`, so its own `result_queue_name` counts. Unknown fields are kept when a request is queued again.

The payload is not decoded: it keeps its bytes. A deadline may be a number or a decimal string.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from math import inf
from typing import Any, Final

import msgspec

from handlers.contract.errors import InvalidRequest
from handlers.contract.lenient_json import (
    MALFORMED,
    MAX_PAIRS,
    MAX_REQUEST_BYTES,
    SALVAGED_BYTES,
    Fields,
    Malformed,
    aside,
    canonical_fields,
    check_json,
    has_more_fields,
    pick,
    repaired,
    salvage,
    shape_of,
    split_object,
    strings,
)
from handlers.number_text import counted, decimal

LATEST_DEADLINE: Final = 253_402_300_799
"""The end of the year 9999 in Unix seconds. A later deadline is in milliseconds, or a mistake."""

LONGEST_TTL_SECONDS: Final = 315_360_000
"""Ten years: more than any reader needs, and far below Redis' limit."""

MAX_ID_LENGTH: Final = 1_024
"""Maximum characters of an id. It becomes part of keys, headers, attributes and results."""

MAX_METADATA_ENTRIES: Final = 1_000
"""Maximum number of metadata entries of a body, ten times the attributes of a Pub/Sub message.

The number is bounded because entries are merged, searched and repeated in results.
"""

_DECIMAL = re.compile(r"[0-9]{1,32}(\.[0-9]{1,32})?")
_PATH = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")
_ACCEPTED_DEADLINE = "Unix seconds > 0, as a number or a decimal string"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A request on its way to the gateway.

    - `payload` is raw JSON, byte for byte as queued; `b""` while it is offloaded under `payload_ref`.
    - `deadline` and `created` are Unix seconds; `attempt` counts from 0.
    - `queue` is the name, in the settings, of its Redis queue or subscription.
    - `result_queue_name` is the list or topic that the request names for its result, or empty. With
      `result_routing_resolved`, it and the request's expiry override the queue's.
    - `request_token` identifies the submission, because an id may be submitted again later.
    - `objective` and `priority` come from the poller's lane and override the queue's objective.
    - `previous_traceparent` is the span of the previous attempt.
    - `claim` is a random value that identifies one attempt to gates.
    """

    id: str
    deadline: float
    payload: bytes
    metadata: Mapping[str, str] = msgspec.field(default_factory=dict)
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    labels: Mapping[str, str] = msgspec.field(default_factory=dict)
    endpoint: str = ""
    model: str = ""
    created: float | None = None
    queue: str = ""
    result_queue_name: str = ""
    result_ttl_seconds: int | None = None
    result_routing_resolved: bool = False
    request_token: str = ""
    payload_ref: str = ""
    attempt: int = 0
    objective: str = ""
    priority: int | None = None
    previous_traceparent: str = ""
    claim: str = ""


class _Body(msgspec.Struct):
    id: str | None = None
    deadline: int | float | str | None = None
    created: int | float | str | None = None
    metadata: dict[str, str | None] | None = None
    headers: dict[str, str | None] | None = None
    endpoint: str | None = None
    model: str | None = None
    result_queue_name: str | None = None


_body_decoder = msgspec.json.Decoder(_Body)
_SMALL_FIELDS: Final = _Body.__struct_fields__
BODY_FIELDS: Final = frozenset({*_SMALL_FIELDS, "payload"})
BODY_MAPS: Final = frozenset({"metadata", "headers"})
_ID_PATHS = frozenset({("id",)})


def decode_body(
    body: bytes,
    *,
    queue: str = "",
    attempt: int = 0,
    request_token: str = "",
    result_queue_name: str | None = None,
    result_ttl_seconds: int | None = None,
    result_routing_resolved: bool = False,
    labels: Mapping[str, str] | None = None,
    extra_metadata: Mapping[str, str] | None = None,
    payload_ref: str = "",
    previous_traceparent: str = "",
    max_bytes: int = MAX_REQUEST_BYTES,
    fields: Fields | None = None,
) -> Request:
    """Decode a request body, a JSON object, as leniently as the reference.

    The keyword arguments come from the transport. `result_queue_name`, if given, overrides the body's own, and
    `extra_metadata` (Pub/Sub attributes) the body's metadata. `fields` are the body's fields, if the caller has split
    it. Raises `InvalidRequest`, which names the field and has the id if it can be read.
    """
    if len(body) > max_bytes:
        raise _invalid(body, "body", counted(len(body), "byte"), f"at most {counted(max_bytes, 'byte')}")
    if fields is None:
        body = repaired(body)
    fields, wire = _decode(body, fields)
    return Request(
        id=_id(body, wire.id),
        deadline=_deadline(body, wire),
        payload=_payload(body, wire, bytes(fields.get("payload", b"")), is_offloaded=bool(payload_ref)),
        metadata=_metadata(body, wire, extra_metadata),
        headers=strings(wire.headers),
        labels=labels or {},
        endpoint=wire.endpoint or "",
        model=wire.model or "",
        created=_created(wire.created),
        queue=queue,
        result_queue_name=(wire.result_queue_name or "") if result_queue_name is None else result_queue_name,
        result_ttl_seconds=_ttl(body, wire, result_ttl_seconds),
        result_routing_resolved=result_routing_resolved,
        request_token=request_token,
        payload_ref=payload_ref,
        attempt=attempt,
        previous_traceparent=previous_traceparent,
    )


async def decode_body_aside(body: bytes, **known: Any) -> Request:
    """As `decode_body`. A large body, which would block the event loop, is decoded in a thread."""
    return await aside(len(body), partial(decode_body, body, **known))


def _metadata(body: bytes, wire: _Body, extra: Mapping[str, str] | None) -> dict[str, str]:
    metadata = strings(wire.metadata)
    if len(metadata) > MAX_METADATA_ENTRIES:
        raise _invalid(
            body,
            "metadata",
            counted(len(metadata), "entry", "entries"),
            f"at most {MAX_METADATA_ENTRIES:,}",
            wire.id,
        )
    return {**metadata, **extra} if extra else metadata


def _id(body: bytes, value: str | None) -> str:
    if not value:
        found = "nothing" if value is None else "an empty string"
        raise _invalid(body, "id", found, "a non-empty string")
    if "\0" in value:
        raise _invalid(body, "id", "a NUL character", "a string without NUL", value)
    if len(value) > MAX_ID_LENGTH:
        raise _invalid(body, "id", counted(len(value), "character"), f"at most {MAX_ID_LENGTH:,}", value)
    return value


def _decode(body: bytes, fields: Fields | None) -> tuple[Fields, _Body]:
    try:
        fields = canonical_fields(body, BODY_FIELDS, maps=BODY_MAPS, nullable="payload", fields=fields)
        for name in BODY_MAPS & fields.keys():
            # Checked before they are decoded: as objects, many short entries take ten times their bytes.
            if has_more_fields(bytes(fields[name]), MAX_PAIRS):
                most = MAX_METADATA_ENTRIES if name == "metadata" else MAX_PAIRS
                far = "far " if most < MAX_PAIRS else ""
                found = f"{far}more entries (over {MAX_PAIRS:,})"
                raise _invalid(body, name, found, f"at most {most:,}")
        return fields, _body_decoder.decode(pick(fields, _SMALL_FIELDS))
    except Malformed as error:
        raise _invalid(body, "body", shape_of(body, error), "one JSON object") from None
    except msgspec.ValidationError as error:
        raise _invalid_type(body, str(error)) from None
    except MALFORMED as error:  # not found by `canonical_fields`, such as a number that overflows
        raise _invalid(body, "body", shape_of(body, error), "one JSON object") from None


def _deadline(body: bytes, wire: _Body) -> float:
    seconds = _seconds(wire.deadline)
    if seconds is not None and 0 < seconds <= LATEST_DEADLINE:
        return seconds
    if seconds is None:
        found = "nothing" if wire.deadline is None else "a string that is not a decimal number"
    elif seconds <= 0:
        found = "a number that is not positive"
    else:
        found = "a number past the year 9999 (milliseconds?)"
    raise _invalid(body, "deadline", found, _ACCEPTED_DEADLINE, wire.id)


def _created(value: float | str | None) -> float | None:
    """The time of creation. None if invalid, since only measurements use it."""
    seconds = _seconds(value)
    return seconds if seconds is not None and 0 <= seconds <= LATEST_DEADLINE else None


def _ttl(body: bytes, wire: _Body, seconds: int | None) -> int | None:
    """Check the result list's expiry. A negative one would delete all its results."""
    if seconds is None or 0 <= seconds <= LONGEST_TTL_SECONDS:
        return seconds
    accepted = f"seconds from 0 to {LONGEST_TTL_SECONDS}"
    found = "a negative number" if seconds < 0 else "a larger number"
    raise _invalid(body, "result_ttl_seconds", found, accepted, wire.id)


def _seconds(value: float | str | None) -> float | None:
    """Convert a number or decimal string. None for None and other strings."""
    if value is None:
        return None
    if isinstance(value, str):
        return decimal(value) if _DECIMAL.fullmatch(value) else None
    try:
        return float(value)
    except OverflowError:  # an integer of more than 308 digits
        return inf if value > 0 else -inf


_PAYLOAD_KINDS: Final = {
    b"": "nothing",
    b"[": "an array",
    b'"': "a string",
    b"t": "a boolean",
    b"f": "a boolean",
}


def _payload(body: bytes, wire: _Body, payload: bytes, *, is_offloaded: bool) -> bytes:
    if payload[:1] == b"{" or payload == b"null":
        return payload
    if is_offloaded and not payload:
        return payload
    found = _PAYLOAD_KINDS.get(payload[:1], "a number")
    raise _invalid(body, "payload", found, "a JSON object, or null", wire.id)


def _invalid(body: bytes, field: str, found: str, accepted: str, request_id: str | None = None) -> InvalidRequest:
    """The error, with the decoded id or else that from `salvage`.

    An id of more than 64 KiB counts as unreadable, because its result could be too large to publish.
    """
    is_known = request_id and len(request_id) <= SALVAGED_BYTES
    known = request_id if is_known else salvage(body, _ID_PATHS).get(("id",), "")
    return InvalidRequest(field, found=found, accepted=accepted, request_id=known or "")


def _invalid_type(body: bytes, message: str) -> InvalidRequest:
    """Convert msgspec's "Expected `str`, got `int` - at `$.metadata[...]`" to an `InvalidRequest`."""
    at = _PATH.search(message)
    field = at["path"].replace("[...]", ".*") if at else "body"
    text = message[: at.start()] if at else message
    expected, _, got = text.removeprefix("Expected ").partition(", got ")
    if field == "deadline":
        expected = _ACCEPTED_DEADLINE
    return _invalid(body, field, got.replace("`", "") or text, expected.replace("`", "").replace(" | null", ""))


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
_internal_decoder = msgspec.json.Decoder(Internal)
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
        raise unread(member, "invalid JSON, or too many levels of nesting") from None


def _decode_frame(member: bytes, fields: Fields) -> tuple[Internal, bytes] | None:
    """The routing and the body of an envelope. None for a bare body."""
    if fields.keys() <= BODY_FIELDS:
        return None
    try:
        parts = canonical_fields(member, _FRAME, structs=_STRUCTS, fields=fields)
        return (_decode_internal(parts), bytes(parts["data"])) if _is_framed(parts) else None
    except (Malformed, *MALFORMED) as error:
        raise unread(member, _found(member, error)) from None


def _is_framed(parts: Fields) -> bool:
    return "data" in parts and ("internal" in parts or "request_kind" in parts)


def _decode_internal(parts: Fields) -> Internal:
    if (kind := bytes(parts.get("request_kind", b'"')))[:1] != b'"':
        raise msgspec.ValidationError(f"Expected `str`, got {shape_of(kind)} - at `$.request_kind`")
    if "internal" not in parts:
        return _BARE
    fields = canonical_fields(bytes(parts["internal"]), _INTERNAL, maps=_LABELS)
    return _internal_decoder.decode(pick(fields, Internal.__struct_fields__))


def _found(member: bytes, error: Exception) -> str:
    """Describe the fault of a member: the wrong type and its field."""
    wrong = _WRONG_TYPE.search(str(error))
    if wrong is None:
        return shape_of(member, error)
    path = wrong["path"] if wrong["path"] == "request_kind" else f"internal.{wrong['path']}".rstrip(".")
    return (wrong["got"] or f"a value that is not {wrong['expected']}") + f" in {path}"


def unread(member: bytes, found: str) -> InvalidRequest:
    """An `InvalidRequest` for a member, without decoding it; takes bounded time."""
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
        parts = _wrapped(member, parts)
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


def _wrapped(body: bytes, fields: Fields) -> Fields:
    """Wrap a bare body, split into `fields`, in an envelope."""
    parts = {"request_kind": msgspec.Raw(b'"plain"'), "data": msgspec.Raw(body)}
    own = canonical_fields(body, _OWN_RESULT, fields=fields)
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
