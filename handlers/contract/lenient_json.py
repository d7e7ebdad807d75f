r"""Decode JSON as leniently as Go's encoding/json, in linear time.

Rules beyond RFC 8259 (https://pkg.go.dev/encoding/json#Unmarshal and its decode.go, scanner.go):

- field names match without regard to case; if several match one field, the last one wins;
- `null` leaves a field unchanged; as a value in a string map it becomes an empty string;
- each invalid UTF-8 byte and each escape of a lone surrogate becomes U+FFFD;
- at most 10,000 levels of nesting, including the outermost one;
- a map that occurs twice is merged.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from random import randrange
from typing import Final, TypeVar

import msgspec

MAX_DEPTH: Final = 10_000
"""Deepest accepted nesting, as in Go's encoding/json (`maxNestingDepth`)."""

MAX_REQUEST_BYTES = 10_000_000
"""Largest request body, in bytes: the limit of one Pub/Sub message."""

BLOCKING_BYTES: Final = 250_000
"""Texts with more bytes are decoded in a thread, because they could block the event loop for 100 ms."""

T = TypeVar("T")


async def aside(size: int, call: Callable[[], T]) -> T:
    """Return `call()`, made in a thread if `size` exceeds `BLOCKING_BYTES`."""
    return await asyncio.to_thread(call) if size > BLOCKING_BYTES else call()


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


_PIECE_LEVELS: Final = 256
"""Deep texts are checked in pieces of this many levels, far below the decoder's recursion limit."""
_STEP_BYTES: Final = 4_096
"""Bytes whose brackets are counted in one step."""
_SMALL_STEP_BYTES: Final = 64
"""Bytes of a smaller step, where a larger one has a bracket that counts."""

_STRING = re.compile(STRING, re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
"""Maps an opening bracket to +1 and a closing one to -1 (as a signed byte)."""
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_SPACE = b" \t\r\n"
_SCALAR = re.compile(rb"[^,}\s]*+")
_SURROGATES = re.compile(rb"(?<!\\)((?:\\\\)*+)((?:\\u[dD][89a-fA-F][0-9a-fA-F]{2})++)")
_PAIR_OR_LONE = re.compile(rb"\\u[dD][89abAB]..\\u[dD][c-fC-F]..|(\\u....)")
_LONE = re.compile(rb"\\u[dD](?:[89abAB]..(?!\\u[dD][c-fC-F])|[c-fC-F](?<!\\u[dD][89abAB]..\\u[dD][c-fC-F]))")
"""Finds every lone surrogate; correct only for texts without `\\\\u`, an escaped backslash before a `u`."""
_INVALID_BYTE = re.compile("[\udc80-\udcff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_NULL: Final = msgspec.Raw(b"null")

MAX_PAIRS = 20_000
"""Maximum number of fields of an object with a repeated, null or differently spelt field; they are read singly."""

_parts_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_raw_decoder = msgspec.json.Decoder(msgspec.Raw)
_key_decoder = msgspec.json.Decoder(str)
_encoder = msgspec.json.Encoder()

Fields = dict[str, msgspec.Raw]


class Malformed(ValueError):
    """Raised for invalid JSON, or JSON that is not the expected object. The message has no content."""


def is_unicode(text: str) -> bool:
    """Whether a string can be encoded as UTF-8 (no lone surrogates)."""
    return text.isascii() or not _SURROGATE.search(text)


def repaired(text: bytes) -> bytes:
    """Replace invalid UTF-8 and escapes of lone surrogates with U+FFFD.

    Returns the same object if nothing needs to be replaced.
    """
    if not text.isascii():
        try:
            str(text, "utf-8")
        except UnicodeDecodeError:
            text = _INVALID_BYTE.sub("\ufffd", str(text, "utf-8", "surrogateescape")).encode()
    if (b"\\ud" in text or b"\\uD" in text) and (b"\\\\u" in text or _LONE.search(text)):
        text = _SURROGATES.sub(_paired, text)
    return text


def _paired(run: re.Match[bytes]) -> bytes:
    return run[1] + _PAIR_OR_LONE.sub(lambda each: rb"\ufffd" if each[1] else each[0], run[2])


def check_json(text: bytes) -> None:
    """Raise `Malformed` unless `text` is one JSON value within `MAX_DEPTH` levels."""
    try:
        _raw_decoder.decode(text)
    except RecursionError:
        for piece in _pieces(text):
            _check_piece(piece)
    except MALFORMED as error:
        raise Malformed(str(error)) from None


def _check_piece(piece: bytes) -> None:
    try:
        _raw_decoder.decode(piece)
    except MALFORMED as error:
        raise Malformed(re.sub(r" \(byte \d+\)$", "", str(error))) from None


def _pieces(text: bytes) -> Iterator[bytes]:
    """Cut a deep text into shallow pieces.

    A value that is too deep for a piece is replaced by `null` and becomes a piece itself. The levels of the cuts are
    random, so that a caller cannot construct a text that is cut at each of its brackets.
    """
    first_cut = randrange(1, _PIECE_LEVELS)
    open_pieces: list[tuple[list[bytes], int]] = []
    chunks: list[bytes] = []
    start = 0
    for at, depth in _turns(text, first_cut):
        if text[at] in b"[{":
            if depth > MAX_DEPTH:
                raise Malformed(f"more than {MAX_DEPTH} levels of nesting")
            open_pieces.append(([*chunks, text[start:at], b"null"], depth))
            chunks, start = [], at
        elif open_pieces and depth == open_pieces[-1][1]:
            yield b"".join([*chunks, text[start : at + 1]])
            chunks, start = open_pieces.pop()[0], at + 1
    if open_pieces:
        raise Malformed("Input data was truncated")
    yield b"".join([*chunks, text[start:]])


def _turns(text: bytes, first_cut: int) -> Iterator[tuple[int, int]]:
    """Find the brackets at which `_pieces` cuts, each with its level.

    `_pieces` cuts at level `first_cut` and at every `_PIECE_LEVELS` below it. Brackets beyond `MAX_DEPTH` are returned
    too.
    """
    depth = 0
    for start, end in _outside_strings(text):
        for at in range(start, end, _STEP_BYTES):
            to = min(end, at + _STEP_BYTES)
            is_cut, last = _has_cut(text[at:to], depth, first_cut)
            for small in range(at, to, _SMALL_STEP_BYTES) if is_cut else ():
                small_to = min(to, small + _SMALL_STEP_BYTES)
                is_cut, small_last = _has_cut(text[small:small_to], depth, first_cut)
                for match in _BRACKET.finditer(text, small, small_to) if is_cut else ():
                    is_open = match[0] in b"[{"
                    depth += is_open
                    if (depth - first_cut) % _PIECE_LEVELS == 0 or depth > MAX_DEPTH:
                        yield match.start(), depth
                    depth -= not is_open
                depth = small_last
            depth = last


def _has_cut(text: bytes, depth: int, first_cut: int) -> tuple[bool, int]:
    """Whether a text reaches a cut level, and its last level. It has no strings."""
    least, most, last = _levels(text, depth)
    is_cut = (least - first_cut) // _PIECE_LEVELS != (most - first_cut) // _PIECE_LEVELS
    return is_cut or most > MAX_DEPTH, last


def _levels(text: bytes, depth: int) -> tuple[int, int, int]:
    """Lowest, highest and last level of a text that begins at `depth`. It has no strings."""
    steps = text.translate(_STEPS, _NO_BRACKETS)
    if not steps:
        return depth, depth, depth
    levels = list(accumulate(memoryview(steps).cast("b"), initial=depth))
    return min(levels), max(levels), levels[-1]


def _outside_strings(text: bytes, at: int = 0) -> Iterator[tuple[int, int]]:
    """The spans (start, end) between strings, from `at` on."""
    while (quote := text.find(b'"', at)) >= 0:
        yield at, quote
        string = _STRING.match(text, quote)
        at = string.end() if string else len(text)
    yield at, len(text)


def has_more_fields(text: bytes, most: int) -> bool:
    """Whether an object of strings has more than `most` fields. Reads no further."""
    colons = 0
    for start, end in _outside_strings(text):
        colons += text.count(b":", start, end)
        if colons > most:
            return True
    return False


def _value_end(text: bytes, at: int) -> int:
    """The end of the JSON value that begins at `at`."""
    if text[at : at + 1] == b'"':
        string = _STRING.match(text, at)
        return string.end() if string else len(text)
    if text[at] not in b"[{":
        scalar = _SCALAR.match(text, at)
        return scalar.end() if scalar else at
    depth = 0
    for start, end in _outside_strings(text, at):
        for place in range(start, end, _STEP_BYTES):
            to = min(end, place + _STEP_BYTES)
            least, _, last = _levels(text[place:to], depth)
            if least > 0:
                depth = last
                continue
            for match in _BRACKET.finditer(text, place, to):
                depth += 1 if match[0] in b"[{" else -1
                if depth == 0:
                    return match.end()
    return len(text)


def split_object(text: bytes) -> Fields:
    """Split a JSON object into fields with undecoded values. Raises `Malformed`."""
    try:
        return _parts_decoder.decode(text)
    except RecursionError:
        check_json(text)
        if not text.lstrip().startswith(b"{"):
            raise Malformed("Expected `object`, got `array`") from None
        return dict(_pairs(text, {}))
    except MALFORMED as error:
        raise Malformed(str(error)) from None


def _pairs(text: bytes, fields: Fields) -> Iterator[tuple[str, msgspec.Raw]]:
    """All fields of a valid JSON object in order, including repeated ones.

    `fields` has the last value of each name. Each field costs about 25 µs; raises `Malformed` for more than
    `MAX_PAIRS`.
    """
    last: dict[str, bytes] = {}  # copies a value once, even if its name is repeated
    at, pairs = text.index(b"{") + 1, 0
    while (quote := text.find(b'"', at)) >= 0:
        colon = text.index(b":", _value_end(text, quote))
        name = _key_decoder.decode(text[quote:colon])
        start = colon + 1
        while text[start] in _SPACE:
            start += 1
        if (pairs := pairs + 1) > MAX_PAIRS:
            raise Malformed(f"expected at most {MAX_PAIRS} fields in an object that repeats a name, got more")
        if name in fields and name not in last:
            last[name] = bytes(fields[name])
        value = last.get(name, b"")
        if value[:1] in (b"{", b"[") and text.startswith(value, start):
            end = start + len(value)
        else:
            end = _value_end(text, start)
        yield name, msgspec.Raw(text[start:end])
        at = end


def canonical_fields(
    text: bytes,
    names: frozenset[str],
    *,
    maps: frozenset[str] = frozenset(),
    structs: frozenset[str] = frozenset(),
    nullable: str = "",
    fields: Fields | None = None,
) -> Fields:
    """Split a JSON object and give known fields their canonical names.

    Known fields (`names`) that are null are left out, except the field `nullable`; other fields are returned unchanged.
    `maps` and `structs` that are repeated are merged; a null removes the earlier values of a map, but not those of a
    struct. `fields` is the result of `split_object`, if the caller has it. Raises `Malformed`.
    """
    if fields is None:
        fields = split_object(text)
    is_plain = (fields.keys() <= names and _NULL not in fields.values()) or all(
        value != _NULL or name == nullable if name in names else _folded(name) not in names
        for name, value in fields.items()
    )
    # `split_object` keeps the last value of a repeated name, which is right except for objects to merge.
    if is_plain and all(text.count(b'"%b"' % name.encode()) < 2 for name in (maps | structs) & fields.keys()):
        return fields
    found: Fields = {}
    objects: dict[str, list[bytes]] = {}
    for name, value in _pairs(text, fields):
        known = name if name in names else _folded(name)
        if known not in names:
            found[name] = value
        elif value != _NULL or known == nullable:
            found[known] = value
            if known in maps or known in structs:
                objects.setdefault(known, []).append(bytes(value))
        elif known in maps:
            found.pop(known, None)
            objects.pop(known, None)
    return {**found, **{name: _merged(texts) for name, texts in objects.items() if len(texts) > 1}}


def _folded(name: str) -> str:
    """Fold a name to lower case as Go does, including long s."""
    return name.lower().replace("\N{LATIN SMALL LETTER LONG S}", "s")


def _merged(texts: Sequence[bytes]) -> msgspec.Raw:
    """Join the fields of all objects, in order.

    If one of the texts is not an object, returns the last text.
    """
    if not all(text.startswith(b"{") for text in texts):
        return msgspec.Raw(texts[-1])
    members = (text[1:-1] for text in texts)
    return msgspec.Raw(b"{" + b",".join(each for each in members if each.strip()) + b"}")


def strings(values: Mapping[str, str | None] | None) -> dict[str, str]:
    """Copy a string map, with an empty string for each null."""
    return {name: value or "" for name, value in values.items()} if values else {}


def pick(fields: Fields, names: Iterable[str]) -> bytes:
    """Encode the named fields as a JSON object."""
    return _encoder.encode({name: fields[name] for name in names if name in fields})
