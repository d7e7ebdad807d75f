"""Requests that a client queues, and their encoding as request bodies."""

from __future__ import annotations

import hashlib
import sys
import uuid
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import Final, NoReturn, TypedDict

import msgspec

from handlers.client.options import shown
from handlers.contract.errors import InvalidRequest
from handlers.contract.lenient_json import MALFORMED, is_unicode, shape_of
from handlers.contract.request import decode_body
from handlers.number_text import counted

Payload = Mapping[str, object] | bytes | str
"""The inference request: a mapping, or JSON text that is sent to the gateway unchanged."""

Deadline = timedelta | datetime | float
"""The deadline: a duration from now, a time (without a zone: local time), or Unix seconds."""

DEADLINES: Final = "a time in the future: a timedelta, a datetime or Unix seconds"
_SURROGATES: Final = "text with lone surrogates (bytes that are not UTF-8, or half a pair)"
_TIERS: Final = ("", "interactive", "async", "batch")
_LONGEST_KEY: Final = 1_024
_TRACE_CONTEXT: Final = frozenset({"traceparent", "tracestate", "baggage"})


def _refuse_type(value: object) -> NoReturn:
    raise TypeError(f"a value of type {type(value).__name__}")


_encoder = msgspec.json.Encoder()
_payload_encoder = msgspec.json.Encoder(enc_hook=_refuse_type)
_canonical_encoder = msgspec.json.Encoder(order="sorted")


class NewRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request to queue. Only `payload` and `deadline` are required.

    - An empty `id` is replaced by a random one.
    - `tier` is `interactive`, `async` or `batch`; `tenant` names the caller for fairness and quotas.
    - With `has_own_results`, the request has its own result list, which `wait` reads. Otherwise its result goes to the
      shared list.
    - A second request with the same `idempotency_key` in the same queue is not queued (Redis only; see
      `content_digest`).
    """

    payload: Payload
    deadline: Deadline
    id: str = ""
    endpoint: str = ""
    model: str = ""
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    metadata: Mapping[str, str] = msgspec.field(default_factory=dict)
    labels: Mapping[str, str] = msgspec.field(default_factory=dict)
    tier: str = ""
    tenant: str = ""
    has_own_results: bool = False
    idempotency_key: str = ""


class RequestFields(TypedDict, total=False):
    """The optional fields of `NewRequest` as keyword arguments of `submit` and `ask`."""

    id: str
    endpoint: str
    model: str
    headers: Mapping[str, str]
    metadata: Mapping[str, str]
    labels: Mapping[str, str]
    tier: str
    tenant: str
    has_own_results: bool
    idempotency_key: str


class CheckedRequest(msgspec.Struct, frozen=True):
    """A checked request: its whole body, the body without payload, the payload."""

    id: str
    deadline: int
    whole: bytes
    without_payload: bytes
    payload: bytes


def encode_body(request: NewRequest, *, now: float, tenant_attribute: str) -> CheckedRequest:
    """Check and encode `request`. `now` is in Unix seconds.

    Raises `InvalidRequest`, which names the field.
    """
    request_id = request.id or uuid.uuid4().hex
    deadline = unix_deadline(request.deadline, now=now, request_id=request_id)
    payload = _payload_bytes(request.payload, request_id)
    _check_text(request, request_id)
    fields: dict[str, object] = {"id": request_id, "created": int(now), "deadline": deadline}
    rest = {
        "metadata": _metadata(request, tenant_attribute),
        "headers": dict(request.headers),
        "endpoint": request.endpoint,
        "model": request.model,
    }
    optional = {name: value for name, value in rest.items() if value}
    whole = _encoder.encode({**fields, "payload": msgspec.Raw(payload), **optional})
    _check_payload(payload, whole, request_id)
    return CheckedRequest(request_id, deadline, whole, _encoder.encode({**fields, **optional}), payload)


def _check_payload(payload: bytes, whole: bytes, request_id: str) -> None:
    """Decode the body `whole`. Raise `InvalidRequest` for its `payload`, unless it is a JSON object."""
    try:
        decode_body(whole)
    except InvalidRequest as error:
        if error.field != "body":
            raise
        try:
            msgspec.json.decode(payload, type=msgspec.Raw)
        except MALFORMED as fault:
            found = shape_of(payload, fault)
            raise InvalidRequest("payload", found=found, accepted="a JSON object", request_id=request_id) from None
        raise


def content_digest(request: NewRequest) -> str:
    """SHA-256, in hex, of the content that an idempotency key identifies.

    The content is a JSON object without whitespace, whose names are sorted at every depth. It has every field of the
    request except `deadline` and `idempotency_key`. `id` is empty if the client chooses it. `metadata` has no trace
    context (`traceparent`, `tracestate`, `baggage`), which differs in a retry. A payload given as text or bytes is
    parsed first, so its whitespace, order and escapes do not matter; if it cannot be parsed, its bytes are used.
    """
    payload: object = request.payload
    if isinstance(payload, bytes | str):
        try:
            payload = msgspec.json.decode(payload)
        except MALFORMED:
            payload = hashlib.sha256(_payload_bytes(request.payload, request.id)).hexdigest()
    content = {name: getattr(request, name) for name in _CONTENT} | {"payload": payload}
    content["metadata"] = {name: value for name, value in request.metadata.items() if name not in _TRACE_CONTEXT}
    return hashlib.sha256(_canonical_encoder.encode(content)).hexdigest()


TEXTS: Final = ("id", "endpoint", "model", "tier", "tenant", "idempotency_key")
MAPPINGS: Final = ("headers", "metadata", "labels")
_CONTENT: Final = frozenset({*TEXTS, *MAPPINGS, "has_own_results"} - {"idempotency_key"})


def unix_deadline(deadline: Deadline, *, now: float, request_id: str = "") -> int:
    """The deadline in whole Unix seconds, rounded up.

    Raises `InvalidRequest` if it is invalid or has passed.
    """
    try:
        if isinstance(deadline, timedelta):
            seconds = now + deadline.total_seconds()
        elif isinstance(deadline, datetime):
            seconds = deadline.astimezone(UTC).timestamp()
        elif isinstance(deadline, str | bytes | bool):
            raise TypeError
        else:
            seconds = float(deadline)
        if seconds > now:
            return ceil(seconds)
        found = _passed(deadline, seconds)
    except (TypeError, ValueError, OverflowError):
        found = shown(deadline)
    raise InvalidRequest("deadline", found=found, accepted=DEADLINES, request_id=request_id)


def _passed(deadline: Deadline, seconds: float) -> str:
    """Describe a past deadline. If it looks like a duration, add a hint."""
    try:
        instant = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        instant = f"{seconds:g} in Unix seconds"
    if isinstance(deadline, timedelta):
        return f"{deadline}, which is not in the future"
    hint = ""
    if not isinstance(deadline, datetime) and 0 < seconds < _LONGEST_DURATION:
        hint = f"; for {seconds:g} s from now give timedelta(seconds={seconds:g})"
    return f"{instant}, which has passed{hint}"


_LONGEST_DURATION = 366 * 86_400


def _payload_bytes(payload: Payload, request_id: str) -> bytes:
    if isinstance(payload, bytes):
        return payload
    if isinstance(payload, str):
        if not is_unicode(payload):
            raise InvalidRequest("payload", found=_SURROGATES, accepted="valid Unicode", request_id=request_id)
        return payload.encode()
    try:
        return _payload_encoder.encode(payload)
    except UnicodeEncodeError:
        raise InvalidRequest("payload", found=_SURROGATES, accepted="valid Unicode", request_id=request_id) from None
    except (TypeError, ValueError) as error:
        raise InvalidRequest(
            "payload", found=str(error), accepted="a value that JSON can represent", request_id=request_id
        ) from error


def _check_text(request: NewRequest, request_id: str) -> None:
    """Raise `InvalidRequest` for lone surrogates and for a long idempotency key."""
    if len(request.idempotency_key) > _LONGEST_KEY:
        found = counted(len(request.idempotency_key), "character")
        raise InvalidRequest("idempotency_key", found=found, accepted=f"at most {_LONGEST_KEY:,} characters")
    if request.tier not in _TIERS:
        raise InvalidRequest("tier", found=shown(request.tier), accepted="interactive, async or batch")
    for name in TEXTS:
        if not is_unicode(getattr(request, name)):
            raise InvalidRequest(name, found=_SURROGATES, accepted="valid Unicode")
    for name in MAPPINGS:
        for key, value in getattr(request, name).items():
            if not (is_unicode(key) and is_unicode(str(value))):
                raise InvalidRequest(name, found=_SURROGATES, accepted="valid Unicode", request_id=request_id)


def _metadata(request: NewRequest, tenant_attribute: str) -> dict[str, str]:
    """The request's metadata, with the tenant and the current trace context added."""
    metadata = dict(request.metadata)
    if request.tenant:
        metadata.setdefault(tenant_attribute, request.tenant)
    if "traceparent" not in metadata:
        _inject_trace(metadata)
    return metadata


def _inject_trace(metadata: MutableMapping[str, str]) -> None:
    """Add the current span's context if the program has loaded OpenTelemetry."""
    if "opentelemetry.trace" in sys.modules:
        from opentelemetry import propagate  # noqa: PLC0415  # an optional dependency

        propagate.inject(metadata)
