"""Lines of OpenAI's batch format: requests, answers and errors.

    in   {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {…}}
    out  {"id": "batch_req_…", "custom_id": "a", "error": null,
          "response": {"status_code": 200, "request_id": "…", "body": {…}}}

Lines with a 2xx answer go to the output file, all others to the error file. `id` ends with the number of the input
line, from which a resumed run knows which lines are written.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from handlers.contract.lenient_json import MALFORMED, Malformed, pick, repaired, shape_of, split_object
from handlers.contract.result import ErrorCode, Result
from handlers.number_text import whole

EXPIRED: Final = "batch_expired"
CANCELLED: Final = "batch_cancelled"
INVALID: Final = "invalid_request"
_CODES: Final = {ErrorCode.DEADLINE_EXCEEDED: EXPIRED, ErrorCode.CANCELLED: CANCELLED}
_URL = re.compile(r"/[!-~]*")
_CUSTOM_ID: Final = "a non-empty string"


class BatchLine(msgspec.Struct, frozen=True):
    """One request of the file. `number` counts from 1, `body` is unchanged JSON."""

    number: int
    custom_id: str
    url: str
    body: bytes


class InvalidLine(msgspec.Struct, frozen=True):
    """An invalid line. It gets an error line, and the batch continues."""

    number: int
    custom_id: str
    reason: str


class _Input(msgspec.Struct):
    custom_id: str = ""
    method: str = ""
    url: str = ""


class _Body(msgspec.Struct):
    stream: bool | None = None


class _OutputError(msgspec.Struct):
    code: str = ""


class _OutputResponse(msgspec.Struct):
    status_code: int = 0


class _Written(msgspec.Struct):
    id: str
    response: _OutputResponse | None = None
    error: _OutputError | None = None


class _Id(msgspec.Struct):
    custom_id: str | int | float | None = None


class _Response(msgspec.Struct):
    status_code: int
    request_id: str
    body: msgspec.Raw | str


class _Error(msgspec.Struct):
    code: str
    message: str


class _Output(msgspec.Struct):
    id: str
    custom_id: str
    response: _Response | None
    error: _Error | None


_input_decoder = msgspec.json.Decoder(_Input)
_body_decoder = msgspec.json.Decoder(_Body)
_written_decoder = msgspec.json.Decoder(_Written)
_id_decoder = msgspec.json.Decoder(_Id)
_raw_decoder = msgspec.json.Decoder(msgspec.Raw)
_encoder = msgspec.json.Encoder()


def decode_line(number: int, text: bytes) -> BatchLine | InvalidLine:
    """Decode one line of the file."""
    try:
        fields = split_object(repaired(text))
        line = _input_decoder.decode(pick(fields, _Input.__struct_fields__))
    except msgspec.ValidationError as error:
        name = str(error).rpartition("$.")[2].rstrip("`")
        accepted = _CUSTOM_ID if name == "custom_id" else "a string"
        reason = f"{name}: expected {accepted}, got {shape_of(bytes(fields[name]))}"
        return InvalidLine(number, custom_id_of(text), reason)
    except (Malformed, *MALFORMED) as error:
        reason = f"expected one JSON object, got {shape_of(text, error)}"
        return InvalidLine(number, custom_id_of(text), reason)
    body = bytes(fields.get("body", b""))
    reason = _problem(line, body)
    if reason:
        return InvalidLine(number, line.custom_id, reason)
    return BatchLine(number, line.custom_id, line.url, body)


def _problem(line: _Input, body: bytes) -> str:
    """The fault of a line, with the field. Empty for a valid request."""
    if not line.custom_id:
        return f"custom_id: expected {_CUSTOM_ID}, got nothing"
    if line.method.upper() != "POST":
        return (
            f"method: expected POST, got {line.method[:20]!r}" if line.method else "method: expected POST, got nothing"
        )
    if not _URL.fullmatch(line.url) or "?" in line.url or "#" in line.url:
        return f"url: expected a path like /v1/chat/completions, got {line.url[:80]!r}"
    return _body_problem(body)


def _body_problem(body: bytes) -> str:
    if not body.startswith(b"{"):
        return f"body: expected a JSON object, got {shape_of(body)}"
    try:
        is_stream = b'"stream"' in body and bool(_body_decoder.decode(body).stream)
    except MALFORMED:
        is_stream = False  # of another type, or nested too deeply: the gateway decides
    return "body.stream: expected false or nothing, got true (a batch collects complete responses)" if is_stream else ""


def custom_id_of(text: bytes) -> str:
    """The `custom_id` of any line. Empty if it cannot be read."""
    try:
        custom_id = _id_decoder.decode(text).custom_id
    except MALFORMED:
        return ""
    return "" if custom_id is None else str(custom_id)


def request_id(batch: str, number: int) -> str:
    """The id of the request of line `number`."""
    return f"{batch}-{number}"


def output_id(batch: str, number: int) -> str:
    """The `id` of an output or error line."""
    return f"batch_req_{batch}_{number}"


def decode_output(batch: str, text: bytes) -> tuple[int, str] | None:
    """The number of the answered line and the kind of error. None for a damaged line."""
    try:
        line = _written_decoder.decode(text)
    except MALFORMED:
        return None
    number = whole(line.id.removeprefix(f"batch_req_{batch}_"))
    if number is None or (line.response is None and line.error is None):
        return None
    return number, _kind(line)


def error_kind(text: bytes) -> str:
    """The kind of an error line: its code, or `http_<status>`."""
    return _kind(_written_decoder.decode(text))


def _kind(line: _Written) -> str:
    if line.error is not None:
        return line.error.code or "error"
    status = line.response.status_code if line.response else 0
    return "" if 200 <= status < 300 else f"http_{status}"


def encode_result_line(batch: str, number: int, custom_id: str, result: Result) -> tuple[bytes, bool]:
    """The line for a result, and whether the output file gets it.

    Only lines with a 2xx answer go to the output file. A payload that is stored elsewhere (`payload_ref` with an
    `s3://` URL) is an error.
    """
    if result.payload_ref:
        return encode_error(batch, number, custom_id, "payload_stored_elsewhere", result.stored_elsewhere), False
    if result.status_code:
        response = _Response(result.status_code, result.id, _body(result.payload))
        line = _Output(output_id(batch, number), custom_id, response, None)
        return _encoder.encode(line) + b"\n", 200 <= result.status_code < 300
    code = result.error_code
    known = _CODES.get(ErrorCode(code)) if code in ErrorCode.__members__.values() else None
    return encode_error(batch, number, custom_id, known or code.lower(), result.error_message), False


def encode_error(batch: str, number: int, custom_id: str, code: str, message: str) -> bytes:
    """The error line of a request without an answer."""
    line = _Output(output_id(batch, number), custom_id, None, _Error(code, message))
    return _encoder.encode(line) + b"\n"


def _body(payload: str) -> msgspec.Raw | str:
    """The response as JSON on one line, or as a string."""
    text = payload.encode()
    try:
        _raw_decoder.decode(text)
    except MALFORMED:
        return payload
    # A line break between tokens is whitespace; JSON strings contain none.
    return msgspec.Raw(text.replace(b"\n", b" ").replace(b"\r", b" ").strip())
