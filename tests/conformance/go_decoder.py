r"""What the reference's Go decoder accepts, and how it reads it: an oracle that shares no code with ours.

The reference decodes members with Go's encoding/json (v1). Each rule, and where Go states it:

- RFC 8259 grammar. White space is space, tab, LF and CR; a string has no control character. (scanner.go: `isSpace`,
  `stateInString`)
- At most 10,000 levels of nesting, arrays and objects together. (scanner.go: `maxNestingDepth`)
- A field name matches exactly, else by `foldName`: ASCII letters without case, U+017F as `s`, U+212A as `k`. (decode.go
  `object`, fold.go `foldRune`)
- Of several names that match one field, the last value counts. (decode.go: `object` stores fields as it reads them)
- An object for a map or struct that has a value is merged into it. (doc of `Unmarshal`: "reuses the existing map")
- `null` leaves a string, number or struct as it is, and empties a map. (decode.go: `literalStore`)
- `null` as a value in a map stores the zero value, an empty string. (decode.go: `object`, `mapElem.SetZero`)
- An integer takes an integer literal in its range, without fraction or exponent. (decode.go: `literalStore`)
- A value of another type is an error. (decode.go: `UnmarshalTypeError`)
- Unknown fields are skipped; their syntax counts. (decode.go: `object`, `d.value(reflect.Value{})`)
- In a string, an escaped lone surrogate and each byte of invalid UTF-8 become U+FFFD. (decode.go: `unquoteBytes`)
- A `json.RawMessage` keeps its bytes. (stream.go: `RawMessage.UnmarshalJSON`)

A member is an envelope if it has `data` beside `internal` or `request_kind`; `internal` alone routes an envelope. An
id is not empty, a deadline is positive, and a payload is an object or null.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

MAX_DEPTH: Final = 10_000
_SPACE: Final = b" \t\n\r"
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_INTEGER = re.compile(rb"-?(?:0|[1-9][0-9]*)")
_HEX = re.compile(rb"[0-9a-fA-F]{4}")
_ESCAPES: Final = {
    ord(letter): value
    for letter, value in zip('"\\/bfnrt', ('"', "\\", "/", "\b", "\f", "\n", "\r", "\t"), strict=True)
}
_INT64: Final = range(-(2**63), 2**63)


class Rejected(ValueError):
    """Go returns an error for this text."""


@dataclass
class Meaning:
    """A request as the reference sees it."""

    id: str
    deadline: int
    payload: bytes
    created: int = 0
    metadata: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    endpoint: str = ""
    model: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    request_token: str = ""
    retry_count: int = 0
    result_queue_name: str = ""
    is_envelope: bool = False


def decode(member: bytes) -> Meaning:
    """The meaning of a member of the sorted set. Raises `Rejected`."""
    end = _skip(member, _space(member, 0))
    if _space(member, end) != len(member):
        raise Rejected("more than one value")
    frame = _Struct({"internal": "struct", "request_kind": "string", "data": "raw"})
    frame.read(member)
    if not ("data" in frame.raw and (frame.seen("internal") or frame.seen("request_kind"))):
        return _body(member, None)
    return _body(frame.raw["data"], frame.structs.get("internal") or _Struct(_INTERNAL))


_INTERNAL: Final = {
    "retry_count": "int",
    "request_token": "string",
    "result_queue_name": "string",
    "labels": "map",
    "enqueue_seq": "int",
    "transport_correlation_id": "string",
}
_BODY: Final = {
    "id": "string",
    "created": "int",
    "deadline": "int",
    "payload": "raw",
    "metadata": "map",
    "headers": "map",
    "endpoint": "string",
    "model": "string",
    "result_queue_name": "string",
}


def _body(data: bytes, internal: _Struct | None) -> Meaning:
    body = _Struct(_BODY)
    body.read(data)
    payload = body.raw.get("payload", b"")
    if not body.strings.get("id") or body.ints.get("deadline", 0) <= 0 or not payload.startswith((b"{", b"null")):
        raise Rejected("no id, deadline or payload")
    routing = internal or body
    return Meaning(
        id=body.strings["id"],
        deadline=body.ints["deadline"],
        payload=payload,
        created=body.ints.get("created", 0),
        metadata=body.maps.get("metadata", {}),
        headers=body.maps.get("headers", {}),
        endpoint=body.strings.get("endpoint", ""),
        model=body.strings.get("model", ""),
        labels=internal.maps.get("labels", {}) if internal else {},
        request_token=internal.strings.get("request_token", "") if internal else "",
        retry_count=internal.ints.get("retry_count", 0) if internal else 0,
        result_queue_name=routing.strings.get("result_queue_name", ""),
        is_envelope=internal is not None,
    )


class _Struct:
    """A Go struct whose fields have the kinds `string`, `int`, `map`, `raw` or `struct`."""

    def __init__(self, kinds: dict[str, str]) -> None:
        self._kinds = kinds
        self._seen: set[str] = set()
        self.strings: dict[str, str] = {}
        self.ints: dict[str, int] = {}
        self.maps: dict[str, dict[str, str]] = {}
        self.raw: dict[str, bytes] = {}
        self.structs: dict[str, _Struct] = {}

    def seen(self, name: str) -> bool:
        """Whether a value other than null was stored."""
        return name in self._seen

    def read(self, text: bytes) -> None:
        """Store an object's fields in the order in which they stand."""
        if text == b"null":
            return
        for written, value in _pairs(text):
            name = written if written in self._kinds else _folded(written)
            if name in self._kinds:
                self._store(name, self._kinds[name], value)

    def _store(self, name: str, kind: str, value: bytes) -> None:
        if kind == "raw":
            self.raw[name] = value
        elif value == b"null":
            self.maps.pop(name, None)
            return
        elif kind == "string":
            self.strings[name] = _string_value(value)
        elif kind == "int":
            self.ints[name] = _int_value(value)
        elif kind == "struct":
            self.structs.setdefault(name, _Struct(_INTERNAL)).read(value)
        else:
            pairs = {key: "" if each == b"null" else _string_value(each) for key, each in _pairs(value)}
            self.maps.setdefault(name, {}).update(pairs)
        self._seen.add(name)


def _folded(name: str) -> str:
    return "".join({"\u017f": "s", "\u212a": "k"}.get(each, each.lower() if each.isascii() else each) for each in name)


def _string_value(value: bytes) -> str:
    if value[:1] != b'"':
        raise Rejected("not a string")
    return unquoted(value)


def _int_value(value: bytes) -> int:
    if not _INTEGER.fullmatch(value) or len(value) > 20 or int(value) not in _INT64:
        raise Rejected("not an int64")
    return int(value)


def _space(text: bytes, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at


def _pairs(text: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and values of an object whose syntax was checked."""
    at = _space(text, 0)
    if text[at : at + 1] != b"{":
        raise Rejected("not an object")
    at = _space(text, at + 1)
    while text[at] != ord("}"):
        end = string_end(text, at)
        name = unquoted(text[at:end])
        at = _space(text, _space(text, end) + 1)
        end = _skip(text, at)
        yield name, text[at:end]
        at = _space(text, end)
        if text[at] == ord(","):
            at = _space(text, at + 1)


def _skip(text: bytes, at: int) -> int:
    """The end of the value that begins at `at`. Raises `Rejected` for a text that is not JSON."""
    closers: list[int] = []
    while True:
        at = _space(text, at)
        sign = text[at : at + 1]
        if sign in (b"{", b"["):
            closers.append(ord("}") if sign == b"{" else ord("]"))
            if len(closers) > MAX_DEPTH:
                raise Rejected("exceeded max depth")
            at = _space(text, at + 1)
            if text[at : at + 1] != bytes(closers[-1:]):
                at = _name_end(text, at) if sign == b"{" else at
                continue
        else:
            at = _scalar_end(text, at)
            if not closers:
                return at
        while closers:  # behind a value, or at the closer of an empty one
            at = _space(text, at)
            if text[at : at + 1] == b",":
                at = _space(text, at + 1)
                at = _name_end(text, at) if closers[-1] == ord("}") else at
                break
            if text[at : at + 1] != bytes(closers[-1:]):
                raise Rejected("invalid character")
            closers.pop()
            at += 1
        else:
            return at


def _name_end(text: bytes, at: int) -> int:
    """Where the value of the member that begins at `at` begins."""
    if text[at : at + 1] != b'"':
        raise Rejected("invalid character looking for beginning of object key string")
    at = _space(text, string_end(text, at))
    if text[at : at + 1] != b":":
        raise Rejected("invalid character after object key")
    return at + 1


def _scalar_end(text: bytes, at: int) -> int:
    if text[at : at + 1] == b'"':
        return string_end(text, at)
    for word in (b"true", b"false", b"null"):
        if text.startswith(word, at):
            return at + len(word)
    number = _NUMBER.match(text, at)
    if not number:
        raise Rejected("invalid character looking for beginning of value")
    return number.end()


def string_end(text: bytes, at: int) -> int:
    at += 1
    while at < len(text):
        sign = text[at]
        if sign == ord('"'):
            return at + 1
        if sign < 0x20:
            raise Rejected("invalid character in string literal")
        if sign == ord("\\"):
            at += 1
            escape = text[at] if at < len(text) else 0
            if escape == ord("u") and _HEX.match(text, at + 1):
                at += 4
            elif escape not in _ESCAPES:
                raise Rejected("invalid character in string escape code")
        at += 1
    raise Rejected("unexpected end of JSON input")


def unquoted(quoted: bytes) -> str:
    text, at, out = quoted[1:-1], 0, []
    while at < len(text):
        if text[at] != ord("\\"):
            end = text.find(b"\\", at)
            end = end if end >= 0 else len(text)
            out.append(_valid(text[at:end]))
            at = end
        elif text[at + 1] != ord("u"):
            out.append(_ESCAPES[text[at + 1]])
            at += 2
        else:
            unit, at = int(text[at + 2 : at + 6], 16), at + 6
            low = int(text[at + 2 : at + 6], 16) if text[at : at + 2] == b"\\u" else 0
            if 0xD800 <= unit < 0xDC00 <= low < 0xE000:
                out.append(chr(0x10000 + ((unit - 0xD800) << 10) + low - 0xDC00))
                at += 6
            else:
                out.append("\ufffd" if 0xD800 <= unit < 0xE000 else chr(unit))
    return "".join(out)


def _valid(raw: bytes) -> str:
    """UTF-8 with U+FFFD for each byte that is not part of a valid sequence."""
    text: Any = raw.decode("utf-8", "surrogateescape")
    return re.sub("[\udc80-\udcff]", "\ufffd", text)
