"""Lines of a batch, as OpenAI's batch format has them: requests in, answers and errors out.

    in   {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {…}}
    out  {"id": "batch_req_…", "custom_id": "a", "error": null,
          "response": {"status_code": 200, "request_id": "…", "body": {…}}}

Lines with a 2xx answer belong to the output file, all others to the error file. `id` ends in the number
of the input line: from it a run that was cut off knows what it has written.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from handlers.contract.result import ErrorCode, Result

EXPIRED: Final = "batch_expired"
CANCELLED: Final = "batch_cancelled"
INVALID: Final = "invalid_request"
_CODES: Final = {ErrorCode.DEADLINE_EXCEEDED: EXPIRED, ErrorCode.CANCELLED: CANCELLED}
_URL = re.compile(r"/[\x21-\x7e]*")


class BatchLine(msgspec.Struct, frozen=True):
    """One request of the file; `number` counts from 1, `body` is as it was written."""

    number: int
    custom_id: str
    url: str
    body: bytes


class InvalidLine(msgspec.Struct, frozen=True):
    """A line that is no request: it gets an error line of its own, the batch goes on."""

    number: int
    custom_id: str
    reason: str


class _Input(msgspec.Struct):
    custom_id: str = ""
    method: str = "POST"
    url: str = ""
    body: msgspec.Raw = msgspec.Raw(b"")


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
_id_decoder = msgspec.json.Decoder(_Id)
_raw_decoder = msgspec.json.Decoder(msgspec.Raw)
_encoder = msgspec.json.Encoder()


def decode_line(number: int, text: bytes) -> BatchLine | InvalidLine:
    """The request in one line of the file."""
    try:
        line = _input_decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return InvalidLine(number, _custom_id(text), str(error).replace("`", ""))
    reason = _problem(line)
    if reason:
        return InvalidLine(number, line.custom_id, reason)
    return BatchLine(number, line.custom_id, line.url, bytes(line.body))


def _problem(line: _Input) -> str:
    """What keeps the line from being a request, naming the field; empty if nothing does."""
    if not line.custom_id:
        return "custom_id: found nothing; accepted is a string that is not empty"
    if line.method.upper() != "POST":
        return "method: accepted is POST"
    if not _URL.fullmatch(line.url):
        return "url: accepted is a path like /v1/chat/completions"
    if not bytes(line.body).startswith(b"{"):
        return "body: accepted is a JSON object"
    return ""


def _custom_id(text: bytes) -> str:
    """The custom id of a line that is otherwise wrong, if it can be read."""
    try:
        custom_id = _id_decoder.decode(text).custom_id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    return "" if custom_id is None else str(custom_id)


def output_id(batch: str, number: int) -> str:
    """The `id` of an output or error line."""
    return f"batch_req_{batch}_{number}"


def output_number(batch: str, text: bytes) -> int | None:
    """The number of the input line that an output line answers; None if it is not of this batch."""
    prefix = b'{"id":"batch_req_%b_' % batch.encode()
    if not text.startswith(prefix):
        return None
    digits = text[len(prefix) : text.index(b'"', len(prefix))]
    return int(digits) if digits.isdigit() else None


def encode_answer(batch: str, number: int, custom_id: str, result: Result) -> tuple[bytes, bool]:
    """The line for a result, and whether it belongs to the output file (a 2xx answer)."""
    if result.status_code:
        response = _Response(result.status_code, result.id, _body(result.payload))
        line = _Output(output_id(batch, number), custom_id, response, None)
        return _encoder.encode(line) + b"\n", 200 <= result.status_code < 300
    code = result.error_code
    known = _CODES.get(ErrorCode(code)) if code in ErrorCode.__members__.values() else None
    return encode_error(batch, number, custom_id, known or code.lower(), result.error_message), False


def encode_error(batch: str, number: int, custom_id: str, code: str, message: str) -> bytes:
    """The error line of a request that got no answer."""
    line = _Output(output_id(batch, number), custom_id, None, _Error(code, message))
    return _encoder.encode(line) + b"\n"


def _body(payload: str) -> msgspec.Raw | str:
    """The gateway's JSON as JSON, on one line; anything else as a string."""
    text = payload.encode()
    try:
        _raw_decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return payload
    # Between tokens a line break is white space; inside a string JSON has none.
    return msgspec.Raw(text.replace(b"\n", b" ").replace(b"\r", b" ").strip())
