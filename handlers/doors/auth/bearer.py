"""Extract bearer tokens from headers and compare them with shared tokens.

Shared tokens come from a setting, or from a file that may change. Several can be valid at once, so that a token can
be rotated without refused requests: put the new token before the old one, wait until every poller sends it, then
remove the old one. The poller sends the first token.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from handlers.contract.errors import InvalidSetting
from handlers.contract.masked_text import unreadable_file
from handlers.doors.door import Refusal
from handlers.number_text import counted
from handlers.telemetry.logs import get_logger

MAX_TOKEN_BYTES: Final = 8_192
"""Maximum length of a token; Google's have about 1 KB. Longer ones are refused without hashing or decoding."""


NO_TOKEN: Final = Refusal(401, "no bearer token")
SEVERAL: Final = Refusal(401, "several authorization headers")
TOO_LONG: Final = Refusal(401, "token too long")
WRONG_TOKEN: Final = Refusal(401, "wrong token")

_MOST_TOKENS: Final = 8
_SHORTEST_BYTES: Final = 16
_REREAD_SECONDS: Final = 5.0
"""Interval at which the file is read again; Kubernetes takes about a minute to update a mounted Secret."""


def bearer_token(headers: Sequence[tuple[bytes, bytes]]) -> bytes | Refusal:
    """The token in the `Authorization: Bearer` header.

    Header names are in lower case. Two such headers are refused, because a proxy could check one and the application
    the other.
    """
    values = [value for name, value in headers if name == b"authorization"]
    if len(values) > 1:
        return SEVERAL
    scheme, _, token = values[0].partition(b" ") if values else (b"", b"", b"")
    token = token.strip(b" ")
    if scheme.lower() != b"bearer" or not token:
        return NO_TOKEN
    return token if len(token) <= MAX_TOKEN_BYTES else TOO_LONG


class DispatchTokenOptions(msgspec.Struct, frozen=True):
    """Tokens, given as `tokens` or in the file `path` (one per line).

    `setting` is the variable that errors name; for the file it is `setting`_FILE.
    """

    path: Path | None = None
    tokens: tuple[str, ...] = ()
    setting: str = "DISPATCH_TOKEN"

    def __repr__(self) -> str:
        return f"DispatchTokenOptions(path={self.path!r}, tokens=<{len(self.tokens)}>)"


class DispatchToken:
    """Checks callers of the dispatch door. Raises `InvalidSetting` without a valid token.

    If the file is later missing or invalid, the last tokens stay valid and a warning is logged.
    """

    def __init__(self, options: DispatchTokenOptions, clock: Callable[[], float] = time.monotonic) -> None:
        self._options = options
        self._clock = clock
        self._log = get_logger("doors")
        self._tokens = _tokens_of(options)
        self._reread_at = clock() + _REREAD_SECONDS

    def tokens(self) -> tuple[str, ...]:
        """All valid tokens; a poller sends the first."""
        self._reread_if_due()
        return tuple(token.decode("ascii") for token in self._tokens)

    async def check(self, headers: Sequence[tuple[bytes, bytes]]) -> Refusal | None:
        """The refusal, or None if the caller is accepted. Header names are in lower case."""
        self._reread_if_due()
        token = bearer_token(headers)
        if isinstance(token, Refusal):
            return token
        # All tokens are compared, so that the response time does not reveal which one matched.
        matches = [hmac.compare_digest(token, good) for good in self._tokens]
        return None if any(matches) else WRONG_TOKEN

    def _reread_if_due(self) -> None:
        now = self._clock()
        if self._options.path is None or now < self._reread_at:
            return
        self._reread_at = now + _REREAD_SECONDS
        try:
            self._tokens = _tokens_of(self._options)
        except InvalidSetting as error:
            self._log.warning("token reload failed", setting=error.setting, found=error.found)


def _tokens_of(options: DispatchTokenOptions) -> tuple[bytes, ...]:
    """Read the tokens. Raises `InvalidSetting`, which never shows a token."""
    if options.path is None:
        tokens = tuple(token.strip().encode() for token in options.tokens)
        return _checked(options.setting, "", tokens)
    try:
        tokens = tuple(options.path.read_bytes().split())
    except OSError as error:
        found = unreadable_file(str(options.path), error, is_secret=True)
        raise InvalidSetting(f"{options.setting}_FILE", found=found, accepted="a readable file") from None
    return _checked(f"{options.setting}_FILE", f"{options.path} with ", tokens)


def _checked(setting: str, where: str, tokens: tuple[bytes, ...]) -> tuple[bytes, ...]:
    if not 1 <= len(tokens) <= _MOST_TOKENS:
        accepted = f"1 to {_MOST_TOKENS} tokens, one per line"
        raise InvalidSetting(setting, found=f"{where}{counted(len(tokens), 'token')}", accepted=accepted)
    accepted = f"{_SHORTEST_BYTES} to {MAX_TOKEN_BYTES:,} printable ASCII characters (openssl rand -hex 32)"
    for token in tokens:
        if not _SHORTEST_BYTES <= len(token) <= MAX_TOKEN_BYTES:
            raise InvalidSetting(setting, found=f"{where}a token of {counted(len(token), 'byte')}", accepted=accepted)
        if not all(0x21 <= byte <= 0x7E for byte in token):
            found = f"{where}a token with spaces, control or non-ASCII characters"
            raise InvalidSetting(setting, found=found, accepted=accepted)
    return tokens
