"""One webhook call: the event, its signatures and the response."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

import httpx
import msgspec

from handlers.backoff import parse_retry_after
from handlers.contract.errors import InvalidSetting
from handlers.contract.result import ErrorCode, Result, encode_result
from handlers.number_text import counted
from handlers.transport.failures import UnusableResponse
from handlers.transport.transport import HEAD_ONLY, TransportOptions, http_client
from handlers.webhook.destinations import WebhookTarget, check_public

EVENT_TYPE: Final = "async_processor.result"
_GONE: Final = 410
_TOO_MANY: Final = 429
_MOST_ANSWER_BYTES: Final = 65_536


class CallAnswer(msgspec.Struct, frozen=True):
    """Outcome of a call. `status` is 0 without a response."""

    status: int = 0
    retry_after_seconds: float | None = None

    @property
    def is_taken(self) -> bool:
        return 200 <= self.status < 300

    @property
    def is_gone(self) -> bool:
        return self.status == _GONE

    @property
    def is_trouble(self) -> bool:
        """Whether the receiver itself fails, so that calls to it must pause."""
        if self.is_taken or self.is_gone:
            return False
        return self.status in (0, _TOO_MANY) or self.status >= 500 or bool(self.retry_after_seconds)


class Caller:
    """Posts events. `clock` returns Unix seconds.

    It connects to public addresses only, unless `allow_private`.
    """

    def __init__(self, *, allow_private: bool, call_seconds: float, clock: Callable[[], float] = time.time) -> None:
        options = TransportOptions(
            max_response_bytes=_MOST_ANSWER_BYTES,
            dns_seconds=0.0,
            check_addresses=None if allow_private else check_public,
        )
        self._client = http_client(options)
        self._call_seconds = call_seconds
        self._clock = clock

    async def close(self) -> None:
        await self._client.aclose()

    async def post(self, target: WebhookTarget, result: Result, since: float, undelivered: str = "") -> CallAnswer:
        """Sign and send the event once. `event_body` explains the arguments."""
        body = event_body(result, since, undelivered)
        signed = signature_headers(target.keys, webhook_id(result), int(self._clock()), body)
        headers = {"content-type": "application/json", **signed}
        try:
            async with asyncio.timeout(self._call_seconds):
                answer = await self._client.post(
                    target.url, content=body, headers=headers, extensions={HEAD_ONLY: True}
                )
        except UnusableResponse as error:  # the body of the response is not needed
            return CallAnswer(error.status_code)
        except (httpx.TransportError, httpx.InvalidURL, OSError):  # a timeout is an OSError
            return CallAnswer()
        retry_after = parse_retry_after(answer.headers.get("retry-after"), self._clock())
        return CallAnswer(answer.status_code, retry_after)


def event_body(result: Result, since: float, undelivered: str = "") -> bytes:
    """The event as JSON. `since` is the arrival of the result in Unix seconds.

    `undelivered` is the reason why the receiver that the request names did not get it, or empty.
    """
    at = since if result.finished_at is None else result.finished_at
    event = {
        "type": EVENT_TYPE,
        "timestamp": datetime.fromtimestamp(at, UTC).isoformat(),
        "data": msgspec.Raw(encode_result(result)),
    }
    if undelivered:
        event["undelivered"] = undelivered
    return msgspec.json.encode(event)


def webhook_id(result: Result) -> str:
    """The id of a result's event, by which receivers drop duplicates.

    A dead letter that is queued again gets a second result, which is no duplicate of its error result.
    """
    name = f"{result.id}\0{result.request_token}"
    if result.error_code == ErrorCode.UNDELIVERABLE:
        name += "\0dead"
    return f"res_{hashlib.sha256(name.encode()).hexdigest()[:32]}"


_PREFIX: Final = "whsec_"
_LEAST, _MOST = 24, 64
_ALPHABET: Final = re.compile(r"[A-Za-z0-9+/=]+")


def read_secrets(text: str, setting: str) -> list[bytes]:
    """Parse secrets, one per line. Raises `InvalidSetting`.

    Each is `whsec_` and the base64 of 24 to 64 bytes.
    """
    keys = [_key(line.strip(), setting) for line in text.splitlines() if line.strip()]
    if not keys:
        raise InvalidSetting(setting, found="nothing", accepted="a secret such as whsec_…, one per line")
    return keys


def _key(line: str, setting: str) -> bytes:
    """Parse one secret. Errors do not show it."""
    text, accepted = line.removeprefix(_PREFIX), f"{_PREFIX} and base64 of {_LEAST} to {_MOST} bytes"
    if not _ALPHABET.fullmatch(text):
        hint = "the URL-safe alphabet (- and _)" if "-" in text or "_" in text else "a character outside base64"
        raise InvalidSetting(setting, found=hint, accepted=accepted)
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        padding = "base64 with wrong padding (its length must be a multiple of 4, padded with =)"
        raise InvalidSetting(setting, found=padding, accepted=accepted) from None
    if not _LEAST <= len(key) <= _MOST:
        raise InvalidSetting(setting, found=f"a secret of {counted(len(key), 'byte')}", accepted=accepted)
    return key


def signature_headers(keys: Sequence[bytes], webhook_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers that sign an event (the Standard Webhooks format).

    There is one signature for each key, so that a receiver can rotate keys.
    """
    signed = b".".join([webhook_id.encode(), str(timestamp).encode(), body])
    macs = (hmac.new(key, signed, hashlib.sha256).digest() for key in keys)
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{base64.b64encode(mac).decode()}" for mac in macs),
    }
