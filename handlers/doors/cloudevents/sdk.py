"""Read and write events of other sources with the cloudevents SDK.

Their data must stay unchanged, but the SDK would decode and re-encode JSON data, and it leaves headers percent-encoded.
So only the attributes are passed to the SDK, and this module decodes and encodes header values. The poller's own events
use the codec of `contract.events`, which costs a fifth of the CPU time.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from handlers.contract.json_limits import MALFORMED, shape_of

_FAMILY: Final = b"application/cloudevents"
_TRACE: Final = ("traceparent", "tracestate")
_REQUIRED: Final = ("id", "source", "type")
_parts_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


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
    return {
        name: to_header(value) if name.startswith("ce-") else value for name, value in headers.items()
    }, body


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
        name: str(found.get(name) or value)
        for name, value in sent.items()
        if name not in (*_REQUIRED, "specversion")
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
