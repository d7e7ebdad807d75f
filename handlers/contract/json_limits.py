"""Limits of JSON texts, and a reader for strings in invalid ones."""

from __future__ import annotations

import re
from typing import Final

import msgspec

MAX_DEPTH: Final = 10_000
"""Deepest accepted nesting, as in Go's encoding/json (`maxNestingDepth`)."""

MAX_REQUEST_BYTES = 10_000_000
"""Largest request body, in bytes: the limit of one Pub/Sub message."""

BLOCKING_BYTES: Final = 1_000_000
"""Texts with more bytes are decoded in a thread, because they could block the event loop for 100 ms."""

MALFORMED: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""Errors that msgspec raises: invalid JSON or types, invalid UTF-8, nesting too deep for its recursion."""

SALVAGED_BYTES: Final = 65_536
"""Bytes of an invalid text that `salvage` searches."""

STRING: Final = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)'
"""Pattern of a JSON string, which may be cut off by the end of the text, even within an escape.

Its quantifiers are possessive and every opening quote matches, so a search takes linear time for any input.
"""

_TOKEN = re.compile(rb"(?P<string>" + STRING + rb")|(?P<bracket>[\[\]{}])|(?P<mark>[:,])", re.DOTALL)


_SHAPES: Final = {
    b"{": "a JSON object",
    b"[": "a JSON array",
    b'"': "a JSON string",
    b"n": "null",
    b"t": "true",
    b"f": "false",
    **dict.fromkeys([b"-", *(b"%d" % digit for digit in range(10))], "a JSON number"),
}


def shape_of(text: bytes, error: Exception | None = None) -> str:
    """The kind of JSON value in `text`, for errors. It shows no content.

    The first bytes decide. For an object, the fault in `error`, which the decoder raised, is added.
    A text with a syntax error is not called an object.
    """
    start = text[:64].lstrip()
    shape = _SHAPES.get(start[:1], "text that is not JSON") if start else "nothing"
    if start[:1].isalpha() and not start.startswith((b"null", b"true", b"false")):
        shape = "text that is not JSON"
    fault = str(error).replace("`", "") if error and start[:1] == b"{" else ""
    if fault == "Input data was truncated":
        return "JSON that is cut off"
    if fault.startswith("JSON is malformed: "):
        return f"malformed JSON ({fault.removeprefix('JSON is malformed: ')})"
    return f"{shape} ({fault})" if fault else shape


def salvage(text: bytes, paths: frozenset[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """Read the strings at `paths` from an invalid JSON text.

    The text may be cut off or have too many levels. `paths` are object keys from the outside in, like `("data", "id")`.
    Searches the first 64 KiB in linear time and never raises. Of repeated keys the last one counts.
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
            if key is None or len(path) > longest:  # comparing long paths would take quadratic time
                continue
            at = (*path[1:], key)
            if at in paths:
                if pending is None:
                    found.pop(at, None)  # type: ignore[arg-type]  # `at` is in `paths`, so no part is None
                else:
                    found[at] = pending  # type: ignore[index]  # the same reason
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
