"""A final result, as JSON that the reference's consumers can read.

If the gateway answered, `status_code` is above 0 and `payload` is the response's body. Otherwise `error_code` is set,
and `payload` repeats the error message for readers that read only that. Empty fields are omitted. The fields after
`request_token` are our own: they are written only if a setting enables them, and the reference's consumers ignore them.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

import msgspec

from handlers.contract.lenient_json import MALFORMED, Malformed
from handlers.contract.masked_text import without_secrets
from handlers.number_text import counted


class ErrorCode(StrEnum):
    """Why a request ended without a response of the gateway."""

    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    """The deadline passed before the gateway responded."""
    CANCELLED = "CANCELLED"
    """The client cancelled this submission."""
    GATE_DROPPED = "GATE_DROPPED"
    """A gate dropped the request."""
    GATE_ERROR = "GATE_ERROR"
    """A gate failed. Only the reference reports this."""
    INFERENCE_ERROR = "INFERENCE_ERROR"
    """The gateway's response cannot be used: it is too large or cannot be decoded."""
    INVALID_REQUEST = "INVALID_REQUEST"
    """The request is invalid. The message names the field."""
    PAYLOAD_UNAVAILABLE = "PAYLOAD_UNAVAILABLE"
    """An offloaded payload no longer exists, or differs from its SHA-256."""
    DUPLICATE = "DUPLICATE"
    """Our own: an idempotent queue has another submission of the same id."""
    UNDELIVERABLE = "UNDELIVERABLE"
    """Our own: the request exceeded the redelivery limit or `MAX_ATTEMPTS`, or could not be processed."""


class Usage(msgspec.Struct, frozen=True):
    """The gateway's counts of input and output tokens."""

    input_tokens: int
    output_tokens: int


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """The result of one submission of a request.

    `id` is the request's; `request_token` identifies the submission.

    These fields are set only with `RESULT_DETAILS`. `attempts` counts attempts at the gateway. `gateway_seconds` is
    the duration of the last attempt, `queue_seconds` the time from the request's `created` to the start of that
    attempt. `finished_at` is in Unix seconds. `metadata` is the request's. `payload_base64` has the bytes of a body
    that is not UTF-8.

    `payload_ref` names an offloaded payload: a Redis key, or an address in another system, such as
    `s3://bucket/prefix/<id>/<token>`. `content_type`, `payload_size` in bytes and `payload_sha256` in hex describe that
    payload. Our client fetches a payload from Redis and clears `payload_ref`. If `payload_ref` is still set, the
    payload is stored elsewhere (`stored_elsewhere`).
    """

    id: str
    status_code: int = 0
    payload: str = ""
    error_code: str = ""
    error_message: str = ""
    request_token: str = ""
    attempts: int = 0
    queue_seconds: float | None = None
    gateway_seconds: float | None = None
    finished_at: float | None = None
    usage: Usage | None = None
    metadata: Mapping[str, str] = msgspec.field(default_factory=dict)
    payload_base64: str = ""
    payload_ref: str = ""
    content_type: str = ""
    payload_size: int = 0
    payload_sha256: str = ""

    @property
    def stored_elsewhere(self) -> str:
        """A sentence that describes where an offloaded payload is, or empty.

        Query values and passwords, which `payload_ref` may contain, are masked.
        """
        if not self.payload_ref:
            return ""
        about = [self.content_type, counted(self.payload_size, "byte") if self.payload_size else ""]
        details = ", ".join(each for each in about if each)
        return f"the payload is stored elsewhere: {without_secrets(self.payload_ref)}" + (details and f" ({details})")


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Result)
_LONG_ESCAPED: Final = bytes(set(range(32)) - set(b"\b\t\n\f\r"))
"""Control characters that JSON writes with six bytes."""
_ESCAPED: Final = bytes(range(32)) + b'"\\'


def answered_result(
    request_id: str, request_token: str, status_code: int, body: bytes, *, keeps_bytes: bool = False
) -> Result:
    """A result with the gateway's response.

    Invalid UTF-8 in the body is replaced with U+FFFD. With `keeps_bytes`, such a body is also given as base64.
    """
    payload = str(body, "utf-8", "replace")
    is_binary = keeps_bytes and "\ufffd" in payload and payload.encode() != body
    return Result(
        id=request_id,
        status_code=status_code,
        payload=payload,
        request_token=request_token,
        payload_base64=base64.b64encode(body).decode() if is_binary else "",
    )


def filled_result(result: Result, body: bytes | None) -> Result:
    """Put the offloaded payload `body` into its result.

    Clears the fields that describe it. Returns a `PAYLOAD_UNAVAILABLE` result if `body` is None or does not match
    `payload_sha256`.
    """
    if body is None:
        return _unavailable(result, "no longer exists")
    if result.payload_sha256 not in ("", hashlib.sha256(body).hexdigest()):
        return _unavailable(result, "differs from its SHA-256")
    whole = answered_result(result.id, result.request_token, result.status_code, body, keeps_bytes=True)
    return msgspec.structs.replace(result, payload=whole.payload, payload_base64=whole.payload_base64, **_INSIDE)


_INSIDE: Final[dict[str, Any]] = {
    "payload_ref": "",
    "content_type": "",
    "payload_size": 0,
    "payload_sha256": "",
}


def _unavailable(result: Result, reason: str) -> Result:
    message = f"the gateway answered {result.status_code}; the offloaded response {reason}"
    error = error_result(result.id, result.request_token, ErrorCode.PAYLOAD_UNAVAILABLE, message)
    fields = {"payload": error.payload, "error_code": error.error_code, "error_message": message}
    return msgspec.structs.replace(result, status_code=0, **fields, **_INSIDE)


def error_result(request_id: str, request_token: str, code: ErrorCode, message: str) -> Result:
    """A final result with an error. `message` is for people and contains no payload."""
    payload = _encoder.encode({"error": message}).decode()
    return Result(id=request_id, payload=payload, error_code=code, error_message=message, request_token=request_token)


def encode_result(result: Result) -> bytes:
    """Encode the result as one JSON object."""
    return _encoder.encode(result)


def encoded_payload_bytes(result: Result) -> int:
    """Maximum bytes of the payload in `encode_result`, including JSON's escapes."""
    text = result.payload.encode()
    escaped = len(text) - len(text.translate(None, _ESCAPED))
    return len(text) + escaped + 4 * _long_escapes(text) + len(result.payload_base64)


def is_mostly_controls(text: bytes) -> bool:
    """Whether escaped control characters make `text` longer than its base64."""
    return 5 * _long_escapes(text) > len(text) // 3


def _long_escapes(text: bytes) -> int:
    return len(text) - len(text.translate(None, _LONG_ESCAPED))


def decode_result(text: bytes) -> Result:
    """Decode a result; unknown fields are ignored. Raises `Malformed`."""
    try:
        return _decoder.decode(text)
    except MALFORMED as error:
        raise Malformed(str(error)) from None


class _OpenAIUsage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


class _OpenAIBody(msgspec.Struct):
    usage: _OpenAIUsage | None = None


_usage_decoder = msgspec.json.Decoder(_OpenAIBody)


def token_usage(body: str | bytes) -> Usage | None:
    """The token counts in the `usage` object of an OpenAI response.

    None if the body has no such object: a stream, an error or another protocol.
    """
    try:
        usage = _usage_decoder.decode(body).usage
    except MALFORMED:
        return None
    if usage is None:
        return None
    found = Usage(usage.prompt_tokens or usage.input_tokens, usage.completion_tokens or usage.output_tokens)
    return found if found.input_tokens >= 0 and found.output_tokens >= 0 else None


ANY: Final = "*"
ANY_RESULT_LIST: Final = "*result*"
"""Default for lists. It excludes most other keys, since queues and quotas rarely have `result` in their names."""
LONGEST_NAME: Final = 2_048
"""Maximum characters of a name. A per-request reply list ends with the id."""


class ResultNames(msgspec.Struct, frozen=True):
    """Names of lists or topics. A `*` stands for any characters."""

    names: tuple[str, ...] = (ANY,)

    @property
    def allows_any(self) -> bool:
        return ANY in self.names

    def allow(self, name: str) -> bool:
        """Whether a request may use `name`. A `*` in `name` has no special meaning."""
        return any(_matches(known, name) for known in self.names)


def read_result_names(text: str) -> ResultNames:
    """Parse comma-separated names. An empty text allows no name."""
    return ResultNames(tuple(name.strip() for name in text.split(",") if name.strip()))


def _matches(pattern: str, name: str) -> bool:
    """Whether `name` matches `pattern`, in which `*` stands for any characters. Takes linear time."""
    first, *rest = pattern.split(ANY)
    if not rest:
        return name == pattern
    *middle, last = rest
    if not name.startswith(first):
        return False
    at = len(first)
    for part in middle:
        found = name.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return len(name) - len(last) >= at and name.endswith(last)


def is_plain_name(name: str) -> bool:
    """Whether a name is printable and has at most `LONGEST_NAME` characters."""
    return len(name) <= LONGEST_NAME and name.isprintable()
