"""Events of other sources: read and write them with the cloudevents SDK, convert them to requests.

Their data must stay unchanged, but the SDK would decode and re-encode JSON data, and it leaves headers percent-encoded.
So only the attributes are passed to the SDK, and this module decodes and encodes header values. The poller's own events
use the codec of `contract.events`, which costs a fifth of the CPU time.

The operator configures which attribute (or HTTP header) of an event, such as a Kafka record, holds the id, the tenant
and the deadline, and whether the data is a request or only its payload. An id or a deadline in the data wins over the
attribute. The tenant comes from the attribute alone: `with_tenant` sets it in the decoded request, since a producer may
spell the field in the data in many ways.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import msgspec
from cloudevents.conversion import to_binary
from cloudevents.exceptions import GenericException
from cloudevents.http import CloudEvent, from_http

from handlers.contract.errors import InvalidEvent
from handlers.contract.events import (
    STRUCTURED,
    Event,
    Headers,
    attribute_text,
    from_header,
    structured_data,
    to_header,
)
from handlers.contract.lenient_json import MALFORMED, Malformed, canonical_fields, repaired, shape_of
from handlers.contract.request import BODY_FIELDS, BODY_MAPS, Request
from handlers.doors.door import Delivery
from handlers.number_text import decimal

_FAMILY: Final = b"application/cloudevents"
_TRACE: Final = ("traceparent", "tracestate")
_REQUIRED: Final = ("id", "source", "type")


def read_event(headers: Headers, body: bytes) -> Event:
    """The event of an HTTP message, binary or structured.

    Header names must be in lower case, as in ASGI. Raises `InvalidEvent`, which names the attribute.
    """
    sent = {
        name[3:].decode("latin-1"): from_header(name[3:].decode("latin-1"), value)
        for name, value in headers
        if name.startswith(b"ce-")
    }
    kind = next((value.lower() for name, value in headers if name == b"content-type"), b"")
    if not kind.startswith(_FAMILY):
        return _read({f"ce-{name}": value for name, value in sent.items()}, body, sent, body)
    if kind.split(b";")[0].strip() != STRUCTURED.encode():
        raise InvalidEvent("content-type", found=repr(kind[:80].decode("latin-1")), accepted=STRUCTURED)
    try:
        parts = _parts_decoder.decode(body)
        data = structured_data(parts)
        attributes = {name: attribute_text(name, raw) for name, raw in parts.items()}
    except MALFORMED as error:
        found, accepted = shape_of(body, error), "a structured CloudEvent, a JSON object"
        raise InvalidEvent("event", found=found, accepted=accepted) from None
    # Headers win for the trace context: a tracer writes the current span into them (HTTP binding, section 3.2.3).
    attributes |= {name: sent[name] for name in _TRACE if name in sent}
    return _read({"content-type": STRUCTURED}, msgspec.json.encode(attributes), attributes, data)


def write_event(
    event_id: str, source: str, event_type: str, extensions: Mapping[str, str], data: bytes
) -> tuple[dict[str, str], bytes]:
    """Headers and body of a binary-mode event whose `data` is JSON."""
    # Without `time: None`, the SDK would add the current time.
    attributes: dict[str, Any] = {**extensions, "datacontenttype": "application/json", "time": None}
    event = CloudEvent({"id": event_id, "source": source, "type": event_type, **attributes}, data)
    headers, body = to_binary(event, data_marshaller=_unchanged)
    return {name: to_header(value) if name.startswith("ce-") else value for name, value in headers.items()}, body


def _read(headers: dict[str, str], body: bytes, sent: Mapping[str, str], data: bytes) -> Event:
    """Read the attributes with the SDK, and add `data`."""
    if sent.get("specversion") != "1.0":
        version = sent.get("specversion", "")
        raise InvalidEvent("specversion", found=repr(version[:20]) if version else "nothing", accepted="1.0")
    for name in _REQUIRED:
        if not sent.get(name):
            raise InvalidEvent(name, found="nothing", accepted="a non-empty string")
    try:
        found = from_http(headers, body, data_unmarshaller=_unchanged)
    except (GenericException, TypeError, ValueError):
        # The SDK fails for attributes named `data` or `extensions`, which it uses itself.
        shown = "an attribute with a reserved name, such as data or extensions"
        raise InvalidEvent("event", found=shown, accepted="a CloudEvent 1.0") from None
    extensions = {
        name: str(found.get(name) or value) for name, value in sent.items() if name not in (*_REQUIRED, "specversion")
    }
    return Event(
        id=found["id"],
        source=found["source"],
        type=found["type"],
        data=data,
        extensions=extensions,
        is_structured="content-type" in headers,
    )


def _unchanged(data: bytes) -> bytes:
    return data


HEADER_PREFIX: Final = "header:"

_parts_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encoder = msgspec.json.Encoder()


class EventFields(msgspec.Struct, frozen=True):
    """The sources of a request's fields.

    A source is the name of an attribute, or `header:` and the name of a header. `deadline_seconds` (0: none) is the
    default deadline, counted from the event's `time`, else from `now`. With `is_payload`, the data is only the payload.
    `tenant_field` is the metadata field that names the tenant.
    """

    id_from: str = ""
    tenant_from: str = ""
    deadline_from: str = ""
    deadline_seconds: float = 0.0
    is_payload: bool = False
    tenant_field: str = "userid"

    @property
    def is_empty(self) -> bool:
        """Whether events need no conversion."""
        return not (self.id_from or self.tenant_from or self.deadline_from or self.deadline_seconds or self.is_payload)


def as_request(event: Event, delivery: Delivery, fields: EventFields, now: float) -> bytes:
    """The event's data with a missing id and deadline added; the payload stays unchanged.

    Data that should be a request but is not a JSON object is returned as it is; the decoder rejects it. An invalid
    deadline is copied, and rejected too. `now` is in Unix seconds.
    """
    if fields.is_payload:
        # Data that is not JSON becomes a string as payload, so that the error names the payload and has the event's id.
        parts = {"payload": msgspec.Raw(event.data) if _is_json(event.data) else _raw("")}
    else:
        try:
            parts = canonical_fields(repaired(event.data), BODY_FIELDS, maps=BODY_MAPS, nullable="payload")
        except Malformed:
            return event.data
    if "id" not in parts:
        request_id = _value(event, delivery, fields.id_from or ("id" if fields.is_payload else ""))
        if request_id:
            parts["id"] = _raw(request_id)
    if "deadline" not in parts:
        deadline = _deadline(event, delivery, fields, now)
        if deadline:
            parts["deadline"] = _raw(deadline)
    return _encoder.encode(parts)


def with_tenant(request: Request, event: Event, delivery: Delivery, fields: EventFields) -> Request:
    """The request with the tenant of `fields.tenant_from`, if that is set.

    An event without that attribute or header becomes a request without a tenant.
    """
    if not fields.tenant_from:
        return request
    tenant = _value(event, delivery, fields.tenant_from)
    metadata = {name: value for name, value in request.metadata.items() if name != fields.tenant_field}
    return msgspec.structs.replace(request, metadata={**metadata, fields.tenant_field: tenant} if tenant else metadata)


def _is_json(data: bytes) -> bool:
    try:
        msgspec.json.decode(data, type=msgspec.Raw)
    except MALFORMED:
        return False
    return True


def _value(event: Event, delivery: Delivery, name: str) -> str:
    """The value of an attribute or header; empty if it is missing."""
    if name.startswith(HEADER_PREFIX):
        return delivery.header(name.removeprefix(HEADER_PREFIX).lower().encode("latin-1", "replace"))
    own = {"id": event.id, "source": event.source, "type": event.type}
    return own.get(name) or event.extensions.get(name, "")


def _deadline(event: Event, delivery: Delivery, fields: EventFields, now: float) -> float | str:
    """Unix seconds of the deadline; 0 if absent; its text if invalid."""
    value = _value(event, delivery, fields.deadline_from)
    if value:
        moment = _moment(value)
        return value if moment is None else moment
    if not fields.deadline_seconds:
        return 0.0
    time = event.extensions.get("time", "")
    began_at = _moment(time) if time else now
    return time if began_at is None else began_at + fields.deadline_seconds


def _moment(text: str) -> float | None:
    """Unix seconds of a number or RFC 3339 time; None if invalid.

    A time without a zone is invalid.
    """
    seconds = decimal(text)
    if seconds is not None:
        return seconds
    try:
        found = datetime.fromisoformat(text.upper())  # RFC 3339 also allows "t" and "z"
    except ValueError:
        return None
    return None if found.tzinfo is None else found.timestamp()


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(_encoder.encode(value))
