"""One final result: what the client gets back, as JSON that the reference's consumers read.

Either the gateway answered (`status_code` > 0, `payload` its body), or nobody did (`error_code`, and the
message a second time in `payload` for readers that look only there). Empty fields are omitted. The fields
behind `request_token` are ours: written only where a setting asks for them, and unknown to the reference's consumers.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

import msgspec

from handlers.contract.json_limits import MALFORMED
from handlers.contract.lenient_json import Malformed
from handlers.contract.masked_text import without_secrets


class ErrorCode(StrEnum):
    """Why there is a result without an answer of the gateway."""

    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    """The deadline passed and no response had come by then."""
    CANCELLED = "CANCELLED"
    """The client cancelled this submission."""
    GATE_DROPPED = "GATE_DROPPED"
    """A gate decided that this request shall not run at all."""
    GATE_ERROR = "GATE_ERROR"
    """A gate could not decide and is set to fail."""
    INFERENCE_ERROR = "INFERENCE_ERROR"
    """The gateway answered with something that cannot be a result (over the size limit, broken)."""
    INVALID_REQUEST = "INVALID_REQUEST"
    """The request breaks the contract; the message names the field."""
    PAYLOAD_UNAVAILABLE = "PAYLOAD_UNAVAILABLE"
    """A payload that was stored apart is gone."""
    DUPLICATE = "DUPLICATE"
    """Ours: another submission of the id stands for this one (a queue that is set to be idempotent)."""
    UNDELIVERABLE = "UNDELIVERABLE"
    """Ours: the request's owner died, or its delivery failed, too often; it was dead-lettered."""


class Usage(msgspec.Struct, frozen=True):
    """Tokens that the gateway says it read and wrote."""

    input_tokens: int
    output_tokens: int


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """The result of the request `id`; `request_token` says of which submission.

    Where details are on: `attempts` counts those at the gateway, `gateway_seconds` is how long the one took that gave
    the result, `queue_seconds` how long the request had waited since its `created` when that began, `finished_at` is in
    Unix seconds, `metadata` the request's own; `payload_base64` holds the body's bytes where they are no UTF-8.

    `payload_ref` names where an offloaded payload is stored: a Redis key of ours, or an address that only its writer's
    own tools read, such as `s3://bucket/prefix/<id>/<token>`. `content_type`, `payload_size` in bytes and
    `payload_sha256` in hex describe that payload. Our client fetches what is under a key of ours and clears
    `payload_ref`: one that is left names a payload stored elsewhere (`stored_elsewhere`).
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
        """For a person: where the payload is stored and what it is; empty if the result has its payload.

        Query values and passwords of an address are masked; `payload_ref` has them.
        """
        if not self.payload_ref:
            return ""
        about = [self.content_type, f"{self.payload_size} bytes" if self.payload_size else ""]
        details = ", ".join(each for each in about if each)
        return f"the payload is stored elsewhere: {without_secrets(self.payload_ref)}" + (
            details and f" ({details})"
        )


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Result)


def answered_result(
    request_id: str, request_token: str, status_code: int, body: bytes, *, keeps_bytes: bool = False
) -> Result:
    """The gateway's answer as a result; bytes that are no UTF-8 become U+FFFD, so the result stays JSON.

    `keeps_bytes` gives such a body as base64 too.
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
    """A result with its offloaded payload `body`, and without what describes that payload.

    It becomes `PAYLOAD_UNAVAILABLE` if `body` is None or differs from `payload_sha256`.
    """
    if body is None:
        return _unavailable(result, "is gone")
    if result.payload_sha256 not in ("", hashlib.sha256(body).hexdigest()):
        return _unavailable(result, "differs from its SHA-256")
    whole = answered_result(result.id, result.request_token, result.status_code, body, keeps_bytes=True)
    return msgspec.structs.replace(
        result, payload=whole.payload, payload_base64=whole.payload_base64, **_INSIDE
    )


_INSIDE: Final[dict[str, Any]] = {
    "payload_ref": "",
    "content_type": "",
    "payload_size": 0,
    "payload_sha256": "",
}


def _unavailable(result: Result, reason: str) -> Result:
    message = f"the gateway answered {result.status_code}; the answer was stored apart and {reason}"
    error = error_result(result.id, result.request_token, ErrorCode.PAYLOAD_UNAVAILABLE, message)
    fields = {"payload": error.payload, "error_code": error.error_code, "error_message": message}
    return msgspec.structs.replace(result, status_code=0, **fields, **_INSIDE)


def error_result(request_id: str, request_token: str, code: ErrorCode, message: str) -> Result:
    """A final result without an answer; `message` is for a person and holds no payload."""
    payload = _encoder.encode({"error": message}).decode()
    return Result(
        id=request_id, payload=payload, error_code=code, error_message=message, request_token=request_token
    )


def encode_result(result: Result) -> bytes:
    """The result as one JSON object."""
    return _encoder.encode(result)


def decode_result(text: bytes) -> Result:
    """Read a result; unknown fields are ignored. Raises `Malformed` for everything that is not a result."""
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
    """Tokens that the `usage` object of an OpenAI response names.

    None if the body names none: a stream, an error or another protocol.
    """
    try:
        usage = _usage_decoder.decode(body).usage
    except MALFORMED:
        return None
    if usage is None:
        return None
    found = Usage(usage.prompt_tokens or usage.input_tokens, usage.completion_tokens or usage.output_tokens)
    return found if found.input_tokens >= 0 and found.output_tokens >= 0 else None
