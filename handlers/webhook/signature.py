"""Signatures of the Standard Webhooks specification: HMAC-SHA256 over id, time and body."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Sequence
from typing import Final

from handlers.contract.errors import InvalidSetting

_PREFIX: Final = "whsec_"
_LEAST, _MOST = 24, 64
_ALPHABET: Final = re.compile(r"[A-Za-z0-9+/=]+")


def read_secrets(text: str, setting: str) -> list[bytes]:
    """Parse keys, one per line: `whsec_` and base64 of 24 to 64 bytes. Raises `InvalidSetting`."""
    keys = [_key(line.strip(), setting) for line in text.splitlines() if line.strip()]
    if not keys:
        raise InvalidSetting(setting, found="nothing", accepted="a secret such as whsec_…, one a line")
    return keys


def _key(line: str, setting: str) -> bytes:
    """Parse one key; errors do not show it."""
    text, accepted = line.removeprefix(_PREFIX), f"{_PREFIX} and base64 of {_LEAST} to {_MOST} bytes"
    if not _ALPHABET.fullmatch(text):
        hint = (
            "the URL-safe alphabet (- and _)" if "-" in text or "_" in text else "a character outside base64"
        )
        raise InvalidSetting(setting, found=hint, accepted=accepted)
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        padding = "base64 with wrong padding: its length must be a multiple of 4, filled up with ="
        raise InvalidSetting(setting, found=padding, accepted=accepted) from None
    if not _LEAST <= len(key) <= _MOST:
        raise InvalidSetting(setting, found=f"a secret of {len(key)} bytes", accepted=accepted)
    return key


def signature_headers(keys: Sequence[bytes], webhook_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers, with a signature of every key, so that a receiver can rotate keys."""
    signed = b".".join([webhook_id.encode(), str(timestamp).encode(), body])
    macs = (hmac.new(key, signed, hashlib.sha256).digest() for key in keys)
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{base64.b64encode(mac).decode()}" for mac in macs),
    }
