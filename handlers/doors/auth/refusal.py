"""Why a caller may not come in, and the bearer token that every doorkeeper looks for first. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

MAX_TOKEN_BYTES: Final = 8_192
"""Google's tokens have about 1 KB; what is longer is not hashed, split or decoded."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """`status` is 401 (who are you?), 403 (not you) or 503 (cannot be told now: bring it again).

    `reason` is for the log: one of a few texts that never hold anything the caller sent.
    """

    status: int
    reason: str


NO_TOKEN: Final = Refusal(401, "no bearer token")
SEVERAL: Final = Refusal(401, "several authorization headers")
TOO_LONG: Final = Refusal(401, "token too long")


def bearer_token(headers: Sequence[tuple[bytes, bytes]]) -> bytes | Refusal:
    """The token of the one `Authorization: Bearer` header; names are in lower case, as ASGI gives them.

    Two such headers are refused: proxy and application could each believe another one.
    """
    values = [value for name, value in headers if name == b"authorization"]
    if len(values) > 1:
        return SEVERAL
    scheme, _, token = values[0].partition(b" ") if values else (b"", b"", b"")
    token = token.strip(b" ")
    if scheme.lower() != b"bearer" or not token:
        return NO_TOKEN
    return token if len(token) <= MAX_TOKEN_BYTES else TOO_LONG
