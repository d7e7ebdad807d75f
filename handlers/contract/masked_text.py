"""Mask credentials in text that is shown to people."""

from __future__ import annotations

import datetime
import re
from typing import Any, Final

import msgspec

from handlers.contract.lenient_json import MALFORMED

MASK: Final = "***"
_IN_URL = re.compile(r"((?:^|(?<=[\s,;='\"(<]))[a-z][a-z0-9+.-]*://)[^\s\"']*@", re.IGNORECASE)
_MAIL = re.compile(r"[\w.+-]++@[\w-]++(?:\.[\w-]++)++")
_QUERY = re.compile(r"[?&](?=[^\s\"'])[^#\s\"']*+")
_FRAGMENT = re.compile(r"(://[^\s\"'#]*+#)[^\s\"']++")
_NAMED = re.compile(
    r"((?:token|secret|passw(?:or)?d|pwd|authorization|credentials?|signature|(?<![a-z])sig"
    r"|(?:api|account|access|private|shared|subscription|functions?)[-_]?key)[\w-]*+\s*+[=:]\s*+)"
    r"(?:(?:bearer|basic)\s++)?[^\s,;&\"']+",
    re.IGNORECASE,
)
_SCHEME = re.compile(r"\b(bearer|basic)\s++[^\s,;\"']+", re.IGNORECASE)
_PRIVATE_KEY: Final = "PRIVATE KEY-----"


def without_secrets(text: str) -> str:
    """Mask everything in a text that looks like a credential.

    It masks users and passwords in URLs, values in query strings, fragments, private keys, and values after names such
    as `token` or `password`. All values of a JSON object or array are masked.
    """
    if text.lstrip()[:1] in ("{", "["):
        try:
            return msgspec.json.encode(_names_alone(msgspec.json.decode(text))).decode()
        except MALFORMED:
            return MASK
    if _PRIVATE_KEY in text:
        return MASK
    text = _IN_URL.sub(rf"\1{MASK}@", text)
    if "@" in text.replace(f"//{MASK}@", "") and not _MAIL.fullmatch(text):
        text = f"{MASK}@{text.rpartition('@')[2]}"
    text = _FRAGMENT.sub(rf"\1{MASK}", _QUERY.sub(_masked_query, text))
    return _SCHEME.sub(rf"\1 {MASK}", _NAMED.sub(rf"\1{MASK}", text))


def _masked_query(query: re.Match[str]) -> str:
    """The names of a query string; a part without a name may be a secret."""
    parts = (part.partition("=") for part in re.split("[&;]", query[0][1:]))
    return query[0][0] + "&".join(f"{name}={MASK}" if equals else MASK for name, equals, _ in parts)


_LONGEST_SHOWN: Final = 80
_KINDS: Final = {dict: "a mapping", list: "a list", type(None): "nothing", datetime.date: "a date"}


def shown_value(value: object) -> str:
    """A value of a setting for an error: text in quotes, long values cut, secrets masked."""
    match value:
        case str():
            text = repr(without_secrets(value))
        case bool():
            text = str(value).lower()
        case int() | float():
            text = str(value)
        case _:
            return _KINDS.get(type(value), f"a {type(value).__name__}")
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 1]}…"


def unreadable_file(path: str, error: Exception, *, is_secret: bool = False) -> str:
    """Why a file cannot be read, for an error.

    With `is_secret`, a text that is not an absolute path is not shown: it may be the secret itself.
    """
    reason = (error.strerror if isinstance(error, OSError) else "") or "bytes that are not UTF-8"
    return f"{shown_path(path) if is_secret else without_secrets(path)}: {reason}"


def shown_path(path: str) -> str:
    """The path of a secret's file; masked unless absolute, since it may be the secret itself."""
    return without_secrets(path) if path.startswith("/") else MASK


def _names_alone(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _names_alone(inner) for name, inner in value.items()}
    return [_names_alone(inner) for inner in value] if isinstance(value, list) else MASK
