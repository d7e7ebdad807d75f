"""Formats one event as one line: escaped, bounded, without credentials. Never raises."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from handlers.contract.request import MAX_ID_LENGTH

LONGEST_TEXT: Final = 512
"""Most characters of a value; error bodies and other untrusted input may be long."""
LONGEST_LINE: Final = 16_384
"""Most characters of a line; the fields of a longer line are cut."""

_LONGEST: Final = {"id": MAX_ID_LENGTH, "exception": LONGEST_LINE}
"""Fields with their own limit: people search for ids, and need whole exceptions."""
_USER_INFO = re.compile(r"://[^\s\"'<>]{0,512}@")
_AUTHORIZATION = re.compile(r"\b((?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)
_encoder = msgspec.json.Encoder(enc_hook=str)


def json_line(fields: Mapping[str, Any]) -> str:
    """One JSON object without line breaks and control characters."""
    line = _json(fields)
    if len(line) > LONGEST_LINE:
        line = _json({name: _shortest(value) for name, value in fields.items()})
    return line


def _json(fields: Mapping[str, Any]) -> str:
    bounded = dict(fields)
    for name, value in fields.items():
        if value.__class__ is str and len(value) > LONGEST_TEXT:
            bounded[name] = _bounded(name, value)
    try:
        line = str(_encoder.encode(bounded), "utf-8")
    except Exception:  # noqa: BLE001  # an unencodable value must lose neither the event nor the request
        line = str(_encoder.encode({_sound(name): _sound(value) for name, value in bounded.items()}), "utf-8")
    line = _without_credentials(line)
    # JSON escapes C0 controls only; terminals also interpret DEL, C1 controls and bidirectional marks.
    return line if line.isprintable() else "".join(c if c.isprintable() else _json_escape(c) for c in line)


def text_line(head: str, event: str, fields: Mapping[str, Any], exception: str = "") -> str:
    """One readable line; a traceback follows on its own lines."""
    pairs = "".join(f" {_printable(name)}={_visible(name, value)}" for name, value in fields.items())
    line = _without_credentials(f"{head} {_visible('event', event)}{pairs}")
    if not exception:
        return line
    shown = _without_credentials(exception[-LONGEST_LINE:]).split("\n")
    return "\n".join([line, *("  " + _printable(text) for text in shown)])


def _bounded(name: str, value: Any) -> Any:
    if not isinstance(value, str) or len(value) <= LONGEST_TEXT:
        return value
    longest = _LONGEST.get(name, LONGEST_TEXT)
    return value if len(value) <= longest else value[:longest] + "…"


def _shortest(value: Any) -> Any:
    """Value cut to a short text, for a line that is too long; numbers stay as they are."""
    if value is None or isinstance(value, bool | int | float):
        return value
    text = str(_sound(value))
    # The end of an exception and the start of other texts are most useful, so both ends are kept.
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT // 2]}…{text[-LONGEST_TEXT // 2 :]}"


def _sound(value: Any) -> Any:
    """The value, if JSON can hold it; else a replacement (surrogates, huge integers, other objects)."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return value
    try:
        text = value if isinstance(value, str) else repr(value)
    except Exception:  # noqa: BLE001  # a __repr__ that fails, or an integer of more than 4,300 digits
        text = f"<{type(value).__name__}>"
    return text[: LONGEST_LINE // 4].encode("utf-8", "backslashreplace").decode()


def _without_credentials(text: str) -> str:
    """Mask credentials; a cheap substring test skips most lines."""
    if "@" in text and "://" in text:
        text = _USER_INFO.sub("://***@", text)
    if "earer" in text or "asic" in text or "EARER" in text or "ASIC" in text:
        text = _AUTHORIZATION.sub(r"\1***", text)
    return text


def _json_escape(character: str) -> str:
    code = ord(character)
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


def _visible(name: str, value: Any) -> str:
    """Value for a terminal: without control characters, quoted if it has spaces or is empty."""
    text = str(_bounded(name, _sound(value) if not isinstance(value, int | float) else value))
    text = _printable(text)
    return f'"{text}"' if name != "event" and (not text or " " in text or "=" in text) else text


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
