"""Events between poller and dispatch door, in both directions.

They are CloudEvents in structured mode: proxies and servers limit the size of headers, so everything that a client
controls is in the body. The attributes come before the data. A header of the request gives the offset of the data, so
that the door finds the data without parsing the event. Both sides use the size limit `wrapped_bytes`.
"""

from __future__ import annotations

import base64
from typing import Final

import msgspec

from handlers.contract.errors import InvalidRequest
from handlers.contract.events import DATA_AT, REQUEST_TYPE, RESULT_TYPE, STRUCTURED, join_structured
from handlers.contract.json_limits import MALFORMED
from handlers.contract.request import Request
from handlers.contract.result import Result
from handlers.number_text import counted, decimal

FRAME_BYTES: Final = 262_144
"""Most bytes of an event besides its content."""
_TEXT_GROWTH: Final = 3
"""Bytes of U+FFFD, which replaces each invalid byte of an answer."""

_encoder = msgspec.json.Encoder()


def wrapped_bytes(content_bytes: int) -> int:
    """Most bytes of an event with `content_bytes` of content: base64 plus `FRAME_BYTES`."""
    return -(-content_bytes // 3) * 4 + FRAME_BYTES


def wrapped_answer_bytes(response_bytes: int) -> int:
    """Most bytes of a door's answer to a response of `response_bytes`."""
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


_decoder = msgspec.json.Decoder(RetryAnswer)


def encode_retry_answer(answer: RetryAnswer) -> bytes:
    """Encode the answer as one JSON object."""
    return msgspec.json.encode(answer)


def decode_retry_answer(body: bytes) -> RetryAnswer | None:
    """Decode the answer. None if the body is not a `RetryAnswer`."""
    try:
        return _decoder.decode(body)
    except MALFORMED:
        return None
