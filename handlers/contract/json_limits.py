"""Limits of a JSON text, and what can still be read of a broken one."""

from __future__ import annotations

import re
from typing import Final

import msgspec

MAX_DEPTH: Final = 10_000
"""Levels of nesting that are accepted, as in Go's encoding/json (`maxNestingDepth`)."""

MAX_REQUEST_BYTES = 10_000_000
"""Largest request body, in bytes: the limit of one Pub/Sub message."""

BLOCKING_BYTES: Final = 1_000_000
"""Larger texts are decoded in a thread, so that no step holds the event loop for 100 ms."""

MALFORMED: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""Everything msgspec raises for a text that it cannot decode: invalid JSON or types, invalid UTF-8, deep nesting."""

SALVAGED_BYTES: Final = 65_536
"""How much of a broken body is searched for its id."""

STRING: Final = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)'
"""A JSON string, or one that the end cuts off, in an escape too: each opening quote is matched and no text read twice.

Possessive, so linear for every input.
"""

_TOKEN = re.compile(rb"(?P<string>" + STRING + rb")|(?P<bracket>[\[\]{}])|(?P<mark>[:,])", re.DOTALL)


def salvage(text: bytes, paths: frozenset[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """Read the strings at some paths of a text that may be cut off, too deep or otherwise broken.

    `paths` are object keys from the outside in, like `("data", "id")`. Returns what is in the first 64 KiB; never
    raises, in linear time. The last of two equal keys wins, as in a whole JSON text.
    """
    found: dict[tuple[str, ...], str] = {}
    path: list[str | None] = []
    longest = max(map(len, paths))
    key: str | None = None
    pending: str | None = None
    for match in _TOKEN.finditer(text[:SALVAGED_BYTES]):
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
    except MALFORMED:
        return None
