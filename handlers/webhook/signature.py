"""Signatures as the Standard Webhooks specification has them: HMAC-SHA256 over id, time and body. Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence
from typing import Final

from handlers.contract.errors import InvalidSetting

_PREFIX: Final = "whsec_"
_LEAST, _MOST = 24, 64


def read_secrets(text: str, setting: str) -> list[bytes]:
    """The keys of a file's text, one a line: `whsec_` and base64 of 24 to 64 bytes. Raises `InvalidSetting`."""
    keys = [_key(line.strip(), setting) for line in text.splitlines() if line.strip()]
    if not keys:
        raise InvalidSetting(setting, found="nothing", accepted="a secret such as whsec_…, one a line")
    return keys


def _key(line: str, setting: str) -> bytes:
    try:
        key = base64.b64decode(line.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not _LEAST <= len(key) <= _MOST:
        accepted = f"{_PREFIX} and base64 of {_LEAST} to {_MOST} bytes"
        raise InvalidSetting(setting, found="no such secret", accepted=accepted)
    return key


def signature_headers(keys: Sequence[bytes], webhook_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers. Several keys sign, so that a receiver may change its own at leisure."""
    signed = b".".join([webhook_id.encode(), str(timestamp).encode(), body])
    macs = (hmac.new(key, signed, hashlib.sha256).digest() for key in keys)
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{base64.b64encode(mac).decode()}" for mac in macs),
    }
