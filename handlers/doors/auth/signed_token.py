"""A JWT in compact form (RFC 7515, 7.1), taken apart strictly. Pure; proves nothing by itself."""

from __future__ import annotations

import binascii
import re
from dataclasses import dataclass
from typing import Final

import msgspec

_SHAPE: Final = re.compile(rb"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_TO_STANDARD: Final = bytes.maketrans(b"-_", b"+/")


class MalformedToken(Exception):
    """Not three base64url parts, or a header that cannot be read."""


class Header(msgspec.Struct, frozen=True):
    """What the token says of its signature; not to be believed, only to be compared."""

    alg: str
    kid: str
    crit: msgspec.Raw | None = None


@dataclass(frozen=True, slots=True)
class SignedToken:
    """`signature` signs `signed`; `claims` is JSON, to be read only after that has been checked."""

    header: Header
    signed: bytes
    signature: bytes
    claims: bytes


_header_decoder = msgspec.json.Decoder(Header)


def split_token(token: bytes) -> SignedToken:
    """The parts. Raises `MalformedToken`."""
    if _SHAPE.fullmatch(token) is None:
        raise MalformedToken
    signed, _, signature = token.rpartition(b".")
    header, _, claims = signed.partition(b".")
    try:
        decoded = _header_decoder.decode(decode_segment(header))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise MalformedToken from None
    return SignedToken(decoded, signed, decode_segment(signature), decode_segment(claims))


def decode_segment(segment: bytes) -> bytes:
    """base64url without padding (RFC 7515, 2). Raises `MalformedToken`."""
    standard = segment.translate(_TO_STANDARD)
    try:
        return binascii.a2b_base64(standard + b"=" * (-len(standard) % 4), strict_mode=True)
    except binascii.Error:
        raise MalformedToken from None
