"""How deep and how large a JSON text of a stranger may be, and what can still be read of a broken one."""

from __future__ import annotations

import re
from itertools import accumulate

import msgspec

MAX_DEPTH = 64
"""Nesting that is accepted, the outermost object counted; deeper is an attack or a mistake."""

MAX_REQUEST_BYTES = 10_000_000
"""Largest request body, in bytes: what Pub/Sub takes as one message."""

_SALVAGE_BYTES = 65_536
"""How much of a broken body is searched for its id: enough for any honest one, cheap for any other."""

_STRING = rb'"[^"\\]*(?:\\.[^"\\]*)*"'
_NOT_A_BRACKET = re.compile(_STRING + rb'|[^\[\]{}"]+', re.DOTALL)
_TOKEN = re.compile(rb"(?P<string>" + _STRING + rb")|(?P<bracket>[\[\]{}])|(?P<mark>[:,])", re.DOTALL)
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
"""An opener is one level down, a closer (-1 as a signed byte) one up."""


def is_too_deep(text: bytes, limit: int = MAX_DEPTH) -> bool:
    """Whether a well-formed JSON text nests more than `limit` levels.

    Cheap for the common case: a text with no more openers than the limit cannot be too deep. Otherwise
    all but brackets is dropped, and they are summed up: one pass in C, whatever the nesting.
    """
    if text.count(b"{") + text.count(b"[") <= limit:
        return False
    steps = _NOT_A_BRACKET.sub(b"", text).translate(_STEPS)
    return max(accumulate(memoryview(steps).cast("b")), default=0) > limit


def salvage(text: bytes, paths: frozenset[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """Read the strings at some paths of a text that may be cut off, too deep or otherwise broken.

    `paths` are object keys from the outside in, like `("data", "id")`. Returns what was found in the
    first 64 KiB; never raises. As in a whole JSON text, the last of two equal keys wins.
    """
    found: dict[tuple[str, ...], str] = {}
    path: list[str | None] = []
    longest = max(map(len, paths))
    key: str | None = None
    pending: str | None = None
    for match in _TOKEN.finditer(text[:_SALVAGE_BYTES]):
        token = match.group()
        if match.lastgroup == "string":
            pending = _string(token)
            if key is None or len(path) > longest:  # deep inside, building the path itself would cost
                continue
            at = (*path[1:], key)
            if at in paths:
                if pending is None:
                    found.pop(at, None)  # type: ignore[arg-type]  # as below
                else:
                    found[at] = pending  # type: ignore[index]  # membership in `paths` proves: no part is None
        elif token == b":":
            key, pending = pending, None
        elif token == b",":
            key = pending = None
        elif token in b"{[":
            path.append(key if token == b"{" else None)
            key = pending = None
        elif path:
            path.pop()
            key = pending = None
    return found


def _string(token: bytes) -> str | None:
    try:
        return msgspec.json.decode(token, type=str)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
