"""CloudEvents 1.0 over HTTP, and the events between poller and dispatch door.

Binary mode carries attributes as `ce-` headers (HTTP binding, section 3.1). Structured mode carries the whole
event as one JSON object (section 3.2, JSON format). Batches are refused, because each event gets its own response.

Poller and door exchange events in structured mode: proxies and servers limit the size of headers, so everything that a
client controls is in the body. The attributes come before the data. A header of the request gives the offset of the
data, so that the door finds the data without parsing the event. Both sides use the size limit `wrapped_bytes`.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import quote, unquote_to_bytes

import msgspec

from handlers.contract.errors import InvalidEvent, InvalidRequest
from handlers.contract.lenient_json import MALFORMED, shape_of
from handlers.contract.request import Request
from handlers.contract.result import Result
from handlers.number_text import counted, decimal, whole

REQUEST_TYPE: Final = "ai.llm-d.async.request.v1"
"""Type of the events that the poller sends."""
RESULT_TYPE: Final = "ai.llm-d.async.result.v1"
"""Type of the event that answers with a final result."""
RETRY_TYPE: Final = "ai.llm-d.async.retry.v1"
"""Type of the event that answers a poller with a retry."""

REMAINING: Final = "remainingms"
"""Extension attribute of the poller's events: milliseconds to the deadline, independent of the door's clock."""
MOST_REMAINING_MS: Final = 10**15 - 1

STRUCTURED: Final = "application/cloudevents+json"
DATA_AT: Final = "x-async-processor-data-at"
"""Header of the poller's events in structured mode: offset of the data in the body, in bytes."""

_DATA_AT: Final = DATA_AT.encode()
_DATA: Final = b',"data":'
_STRUCTURED: Final = STRUCTURED.encode()
_FAMILY: Final = b"application/cloudevents"
_TRACE: Final = ("traceparent", "tracestate")
_REQUIRED: Final = ("id", "source", "type")
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
_PLAIN_HEADER = re.compile(r"[!#$&-~]*")
_SAFE_IN_HEADER: Final = "".join(chr(c) for c in range(0x21, 0x7F) if chr(c) not in '"%')

Headers = Iterable[tuple[bytes, bytes]]


class Event(msgspec.Struct, frozen=True):
    """One CloudEvent.

    `extensions` are all attributes except id, source and type, as strings. `is_structured`: it was sent in structured
    mode.
    """

    id: str
    source: str
    type: str
    data: bytes
    extensions: Mapping[str, str] = msgspec.field(default_factory=dict)
    is_structured: bool = False

    @property
    def is_from_poller(self) -> bool:
        """Whether a poller sent the event. Only pollers read our answer format."""
        return self.type == REQUEST_TYPE and "queue" in self.extensions


_strings_decoder = msgspec.json.Decoder(dict[str, str])
_parts_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encoder = msgspec.json.Encoder()


def is_event(headers: Headers) -> bool:
    """Whether the headers announce a CloudEvent, in binary or structured mode."""
    return any(
        name == b"ce-specversion" or (name == b"content-type" and value.lower().startswith(_FAMILY))
        for name, value in headers
    )


def decode_event(headers: Headers, body: bytes) -> Event:
    """Decode an event from an HTTP message. Raises `InvalidEvent`, which names the attribute.

    Header names are lower case, as in ASGI.
    """
    attributes: dict[str, str] = {}
    structured_type, data_at = b"", b""
    for name, value in headers:
        if name.startswith(b"ce-"):
            attribute = name[3:].decode("latin-1")
            attributes[attribute] = from_header(attribute, value)
        elif name == b"content-type" and value.lower().startswith(_FAMILY):
            structured_type = value.lower()
        elif name == _DATA_AT:
            data_at = value
    if not structured_type:
        return _event(attributes, body)
    event = _decode_structured(structured_type, body, data_at)
    # A tracer writes the current span into headers, which structured mode may repeat (HTTP binding, section 3.2.3).
    trace = {name: attributes[name] for name in _TRACE if name in attributes}
    return msgspec.structs.replace(event, extensions={**event.extensions, **trace}) if trace else event


def join_structured(attributes: bytes, data: bytes) -> tuple[bytes, int]:
    """Encode an event in structured mode. Returns it and the offset of its data.

    `attributes` is a JSON object, `data` any JSON text.
    """
    return b"".join((attributes[:-1], _DATA, data, b"}")), len(attributes) - 1 + len(_DATA)


def _split_structured(body: bytes, data_at: bytes) -> tuple[dict[str, str], bytes]:
    """Split a poller's event (see `join_structured`) without parsing its data."""
    at = whole(data_at) or 0
    head = body[:at]
    if not (head.endswith(_DATA) and body.endswith(b"}")):
        raise InvalidEvent(DATA_AT, found=f"{at}, at which no data begins", accepted="the offset of the data")
    return _strings_decoder.decode(head[: -len(_DATA)] + b"}"), body[at:-1]


def _decode_structured(content_type: bytes, body: bytes, data_at: bytes) -> Event:
    if content_type.split(b";")[0].strip() != _STRUCTURED:
        found = repr(content_type[:80].decode("latin-1"))
        raise InvalidEvent("content-type", found=found, accepted=_STRUCTURED.decode())
    try:
        if data_at:
            attributes, data = _split_structured(body, data_at)
        else:
            parts = _parts_decoder.decode(body)
            data = structured_data(parts)
            attributes = {name: attribute_text(name, raw) for name, raw in parts.items()}
    except MALFORMED as error:
        found, accepted = shape_of(body, error), "a structured CloudEvent, a JSON object"
        raise InvalidEvent("event", found=found, accepted=accepted) from None
    return _event(attributes, data, is_structured=True)


def structured_data(parts: dict[str, msgspec.Raw]) -> bytes:
    """Remove the data from a structured event's members and return its bytes.

    Raises `InvalidEvent` for invalid base64.
    """
    encoded, data = parts.pop("data_base64", None), parts.pop("data", None)
    if encoded is not None:
        try:
            return base64.b64decode(msgspec.json.decode(encoded, type=str), validate=True)
        except (ValueError, msgspec.ValidationError):  # also for text that is not ASCII
            found = f"{shape_of(bytes(encoded))} that is not base64"
            raise InvalidEvent("data_base64", found=found, accepted="a base64 string") from None
    if data is None:
        return b""
    content = bytes(data)
    # A string holds data that is not JSON, or JSON that the producer encoded twice. In both cases its text is the data.
    return msgspec.json.decode(content, type=str).encode() if content.startswith(b'"') else content


def attribute_text(name: str, raw: msgspec.Raw) -> str:
    """Convert a structured event's attribute to its text in binary mode.

    Raises `InvalidEvent` for an object or array.
    """
    value = msgspec.json.decode(raw)
    if isinstance(value, dict | list):
        found = "an array" if isinstance(value, list) else "an object"
        raise InvalidEvent(name, found=found, accepted="a string, number or boolean")
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def _event(attributes: dict[str, str], data: bytes, *, is_structured: bool = False) -> Event:
    if (version := attributes.pop("specversion", "")) != "1.0":
        raise InvalidEvent("specversion", found=repr(version[:20]) if version else "nothing", accepted="1.0")
    for name in _REQUIRED:
        if not attributes.get(name):
            raise InvalidEvent(name, found="nothing", accepted="a non-empty string")
    return Event(
        id=attributes.pop("id"),
        source=attributes.pop("source"),
        type=attributes.pop("type"),
        data=data,
        extensions=attributes,
        is_structured=is_structured,
    )


def binary_headers(event_id: str, source: str, event_type: str, extensions: Mapping[str, str]) -> dict[str, str]:
    """The headers of an event in binary mode with JSON data."""
    headers = {
        "ce-specversion": "1.0",
        "ce-id": to_header(event_id),
        "ce-source": to_header(source),
        "ce-type": event_type,
        "content-type": "application/json",
    }
    for name, value in extensions.items():
        headers[f"ce-{name}"] = to_header(value)
    return headers


def to_header(value: str) -> str:
    """Percent-encode characters that headers may not contain (HTTP binding, section 3.1.3.2)."""
    return value if _PLAIN_HEADER.fullmatch(value) else quote(value, safe=_SAFE_IN_HEADER)


def from_header(attribute: str, value: bytes) -> str:
    """Unquote a header's value and percent-decode it once (HTTP binding, section 3.1.3.2).

    Bytes outside ASCII, which senders should have encoded, are decoded as UTF-8, else as Latin-1. Raises `InvalidEvent`
    if percent-encoded bytes are not UTF-8.
    """
    if len(value) > 1 and value.startswith(b'"') and value.endswith(b'"'):
        value = _ESCAPED.sub(rb"\1", value[1:-1])
    if b"%" in value:
        try:
            return unquote_to_bytes(value).decode()
        except UnicodeDecodeError:
            raise InvalidEvent(attribute, found="percent-encoded bytes that are not UTF-8", accepted="UTF-8") from None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


FRAME_BYTES: Final = 262_144
"""Maximum bytes of an event besides its content."""
_TEXT_GROWTH: Final = 3
"""Bytes of U+FFFD, which replaces each invalid byte of an answer."""


def wrapped_bytes(content_bytes: int) -> int:
    """Maximum bytes of an event with `content_bytes` of content: base64 plus `FRAME_BYTES`."""
    return -(-content_bytes // 3) * 4 + FRAME_BYTES


def wrapped_answer_bytes(response_bytes: int) -> int:
    """Maximum bytes of a door's answer to a response of `response_bytes`."""
    return wrapped_bytes(_TEXT_GROWTH * response_bytes)


def encode_request(request: Request, body: bytes, remaining_ms: int) -> tuple[dict[str, str], bytes]:
    """Encode the event that delivers a request to the door (headers, body).

    `body` is the request's JSON and stays unchanged. `remaining_ms` is the time to the deadline. Raises
    `InvalidRequest` if id, token and labels together exceed `FRAME_BYTES`.
    """
    attributes: dict[str, str] = {
        "specversion": "1.0",
        "id": request.id,
        "source": f"/redis/{request.queue}",
        "type": REQUEST_TYPE,
        "datacontenttype": "application/json",
        "queue": request.queue,
        "attempt": str(request.attempt),
        "remainingms": str(remaining_ms),
    }
    if request.request_token:
        attributes["requesttoken"] = request.request_token
    if request.labels:
        attributes["labels"] = _encoder.encode(request.labels).decode()
    if request.objective:
        attributes["objective"] = request.objective
    if request.priority is not None:
        attributes["priority"] = str(request.priority)
    head = _encoder.encode(attributes)
    if len(head) > FRAME_BYTES:
        raise _too_large(request, attributes)
    content, data_at = join_structured(head, body)
    return {"content-type": STRUCTURED, DATA_AT: str(data_at)}, content


def _too_large(request: Request, attributes: dict[str, str]) -> InvalidRequest:
    largest = max(attributes, key=lambda name: len(attributes[name]))
    field = {"labels": "internal.labels", "requesttoken": "internal.request_token"}.get(largest, largest)
    return InvalidRequest(
        field,
        found=counted(len(attributes[largest].encode()), "byte"),
        accepted=f"at most {FRAME_BYTES:,} bytes for id, token and labels together",
        request_id=request.id,
    )


class AnswerEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """The door's answer: a final result, or a retry (`reason` is set).

    The data is the payload of the result, or the gateway's last response. Fields named `…seconds` are decimal strings,
    because CloudEvents attributes have no fractions; empty if unknown. `isbinary`: the payload is not UTF-8. `wassent`:
    the request reached the gateway. `contenttype` is the gateway's `Content-Type`.
    """

    specversion: str
    id: str
    source: str
    type: str
    requestid: str
    statuscode: int = 0
    errorcode: str = ""
    errormessage: str = ""
    requesttoken: str = ""
    gatewayseconds: str = ""
    contenttype: str = ""
    isbinary: bool = False
    reason: str = ""
    delayseconds: str = ""
    countsattempt: bool = True
    wassent: bool = False
    droppedreason: str = ""
    retryafterseconds: str = ""
    queuedurationms: str = ""
    bandheadroom: str = ""
    data_base64: bytes = b""

    def result(self, *, keeps_bytes: bool) -> Result:
        """The final result. With `keeps_bytes`, a binary payload is also given as base64."""
        return Result(
            id=self.requestid,
            status_code=self.statuscode,
            payload=str(self.data_base64, "utf-8", "replace"),
            error_code=self.errorcode,
            error_message=self.errormessage,
            request_token=self.requesttoken,
            gateway_seconds=decimal(self.gatewayseconds),
            payload_base64=base64.b64encode(self.data_base64).decode() if self.isbinary and keeps_bytes else "",
        )


_answer_decoder = msgspec.json.Decoder(AnswerEvent)


def answer_of_result(event_id: str, source: str, result: Result, content_type: str = "") -> AnswerEvent:
    """The event for a final result. Its id is derived from the request event's id."""
    encoded = result.payload_base64
    return AnswerEvent(
        specversion="1.0",
        id=f"{event_id}.result",
        source=source,
        type=RESULT_TYPE,
        requestid=result.id,
        statuscode=result.status_code,
        errorcode=result.error_code,
        errormessage=result.error_message,
        requesttoken=result.request_token,
        gatewayseconds=text(result.gateway_seconds),
        contenttype=content_type,
        isbinary=bool(encoded),
        data_base64=base64.b64decode(encoded) if encoded else result.payload.encode(),
    )


def encode_answer(answer: AnswerEvent) -> bytes:
    """Encode the event as one JSON object (structured mode)."""
    return _encoder.encode(answer)


def decode_answer(body: bytes) -> AnswerEvent | None:
    """Decode an answer. None if the body is not an `AnswerEvent`."""
    try:
        return _answer_decoder.decode(body)
    except MALFORMED:
        return None


def text(value: float | None) -> str:
    """Encode a number as an attribute; None becomes an empty string."""
    return "" if value is None else repr(value)


OUTCOME_HEADER: Final = "x-async-processor-outcome"
RETRY: Final = "retry"


class RetryAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """A retry, with the gateway's last response and feedback for gates.

    `status_code` and `payload` are that response, if there is one. The fields after `payload` are the feedback.
    `was_sent`: the request reached the gateway.
    """

    reason: str
    retry_after_seconds: float
    counts_attempt: bool = True
    status_code: int = 0
    payload: str = ""
    was_sent: bool = False
    dropped_reason: str = ""
    gateway_retry_after_seconds: float | None = None
    queue_duration_ms: float | None = None
    band_headroom: float | None = None


_retry_decoder = msgspec.json.Decoder(RetryAnswer)


def encode_retry_answer(answer: RetryAnswer) -> bytes:
    """Encode the answer as one JSON object."""
    return msgspec.json.encode(answer)


def decode_retry_answer(body: bytes) -> RetryAnswer | None:
    """Decode the answer. None if the body is not a `RetryAnswer`."""
    try:
        return _retry_decoder.decode(body)
    except MALFORMED:
        return None
