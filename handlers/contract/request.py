"""A request as a client queued it, decoded once and frozen.

The payload is not decoded: it keeps its bytes. A deadline may be a number or a decimal string. Unknown fields are
ignored here; `handlers.contract.envelope` keeps them when a request is queued again.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from math import inf
from typing import Any, Final

import msgspec

from handlers.contract.errors import InvalidRequest
from handlers.contract.json_limits import (
    BLOCKING_BYTES,
    MALFORMED,
    MAX_REQUEST_BYTES,
    SALVAGED_BYTES,
    salvage,
    shape_of,
)
from handlers.contract.lenient_json import (
    MAX_PAIRS,
    Fields,
    Malformed,
    canonical_fields,
    has_more_fields,
    pick,
    repaired,
    strings,
)
from handlers.number_text import counted, decimal

LATEST_DEADLINE: Final = 253_402_300_799
"""The end of the year 9999 in Unix seconds. A later deadline is in milliseconds, or a mistake."""

LONGEST_TTL_SECONDS: Final = 315_360_000
"""Ten years: more than any reader needs, and far below Redis' limit."""

MAX_ID_LENGTH: Final = 1_024
"""Most characters of an id. It becomes part of keys, headers, attributes and results."""

MAX_METADATA_ENTRIES: Final = 1_000
"""Most metadata entries of a body, ten times the attributes of a Pub/Sub message.

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


_decoder = msgspec.json.Decoder(_Body)
_SMALL_FIELDS: Final = _Body.__struct_fields__
BODY_FIELDS: Final = frozenset({*_SMALL_FIELDS, "payload"})
_MAPS: Final = frozenset({"metadata", "headers"})
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
    if len(body) <= BLOCKING_BYTES:
        return decode_body(body, **known)
    return await asyncio.to_thread(decode_body, body, **known)


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
        fields = canonical_fields(body, BODY_FIELDS, maps=_MAPS, nullable="payload", fields=fields)
        for name in _MAPS & fields.keys():
            # Checked before they are decoded: as objects, many short entries take ten times their bytes.
            if has_more_fields(bytes(fields[name]), MAX_PAIRS):
                most = MAX_METADATA_ENTRIES if name == "metadata" else MAX_PAIRS
                raise _invalid(body, name, f"more than {MAX_PAIRS:,} entries", f"at most {most:,}")
        return fields, _decoder.decode(pick(fields, _SMALL_FIELDS))
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
    raise _invalid(body, "result_ttl_seconds", "a number out of range", accepted, wire.id)


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
    """The error, with the decoded id or else the one `salvage` finds.

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
