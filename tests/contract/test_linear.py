"""Every look at untrusted bytes is linear: no regular expression that can backtrack, work counted per byte."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from re import _constants as codes  # type: ignore[attr-defined]  # the parser has no public names
from re import _parser  # type: ignore[attr-defined]  # as above
from typing import Any

import pytest

from handlers.contract import json_limits, lenient_json
from handlers.contract.envelope import decode_member
from handlers.contract.errors import InvalidEvent, InvalidRequest
from handlers.contract.events import decode_event
from handlers.contract.json_limits import salvage
from handlers.contract.lenient_json import Malformed, canonical_fields, check_json, repaired, split_object
from handlers.contract.request import decode_body
from handlers.contract.result import decode_result
from handlers.contract.retry_answer import decode_retry_answer

ROOT = Path(__file__).parents[2]


def patterns() -> Iterator[tuple[str, str | bytes]]:
    """Every pattern in the source: literals, and what the modules of the contract build at import."""
    for path in sorted((ROOT / "handlers").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
                continue
            is_re = isinstance(node.func.value, ast.Name) and node.func.value.id == "re"
            literal = node.args[0]
            if is_re and isinstance(literal, ast.Constant) and isinstance(literal.value, str | bytes):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", literal.value
    for module in (json_limits, lenient_json):
        for name, value in vars(module).items():
            if isinstance(value, re.Pattern):
                yield f"{module.__name__}.{name}", value.pattern


def starts(items: Any) -> set[int] | None:
    """The bytes a sequence may begin with; None: not known, so any."""
    if not len(items):
        return set()
    op, value = items[0]
    if op is codes.LITERAL:
        return {value}
    if op is codes.IN and all(kind in (codes.LITERAL, codes.RANGE) for kind, _ in value):
        return {n for kind, v in value for n in ([v] if kind is codes.LITERAL else range(v[0], v[1] + 1))}
    if op is codes.SUBPATTERN:
        return starts(value[3])
    return None


def faults(items: Any, *, inside: bool = False) -> Iterator[str]:
    """Nested unbounded repeats, and adjacent ones that may begin alike; possessive ones cannot backtrack."""
    previous: tuple[Any, set[int] | None] | None = None
    for op, value in items:
        is_repeat = op in (codes.MAX_REPEAT, codes.MIN_REPEAT)
        is_unbounded = is_repeat and value[1] is codes.MAXREPEAT
        if is_unbounded and inside:
            yield "nested unbounded repeats"
        here = starts(value[2]) if is_unbounded else None
        if is_unbounded and previous is not None:
            before = previous[1]
            if before is None or here is None or before & here:
                yield "adjacent unbounded repeats"
        previous = (op, here) if is_unbounded else None
        for inner in inner_parts(op, value):
            yield from faults(inner, inside=inside or is_unbounded)


def inner_parts(op: Any, value: Any) -> list[Any]:
    if op in (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT):
        return [value[2]]
    if op is codes.SUBPATTERN:
        return [value[3]]
    if op is codes.BRANCH:
        return list(value[1])
    return [value] if op is codes.ATOMIC_GROUP else []


# Reviewed by hand: each is bounded by what it is applied to.
REVIEWED = {
    r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*": "at most 253 bytes",
}


def test_no_pattern_of_the_source_can_backtrack_without_bound() -> None:
    found = [
        f"{place}: {fault}: {pattern!r}"
        for place, pattern in patterns()
        if pattern not in REVIEWED
        for fault in faults(_parser.parse(pattern))
    ]
    assert found == []


@pytest.mark.parametrize("pattern", ["(a*)*", "(a+)+b", "a*a*b", "(?:x|a+)*", r"\d+\d+", "(a*b*)+"])
def test_the_lint_finds_what_backtracks(pattern: str) -> None:
    assert list(faults(_parser.parse(pattern)))


@pytest.mark.parametrize(
    "pattern", ["(?:a*+b)*+", "a+b+", "[^/]+/x", "(a{1,9})*", r'"[^"\\]*+(?:\\.[^"\\]*+)*+"']
)
def test_the_lint_passes_what_does_not(pattern: str) -> None:
    assert not list(faults(_parser.parse(pattern)))


def open_forms(size: int) -> dict[str, bytes]:
    """Texts that end in the middle of something, of about `size` bytes."""
    head = b'{"id":"x","a":'
    return {
        "escaped quotes": head + b'"' + rb"\"" * (size // 2),
        "open text": head + b'"' + b"a" * size,
        "open escape": head + b'"' + rb"\\" * (size // 2) + b"\\",
        "open array": head + b"[" * size,
        "flat arrays": head + b"[" + b"[]," * (size // 3),
        "open object": head + b'{"a":' * (size // 5),
        "half surrogates": head + b'"' + rb"\ud83d" * (size // 6),
        "half a pair": head + b'"' + rb"\ud83d\ud" * (size // 9),
        "half a number": head + b"1" * size,
        "half an exponent": head + b"1e",
        "quotes": head + b'"' * size,
        "colons": head + b":" * size,
        "no UTF-8": head + b'"' + b"\xff" * size,
        "spaces": head + b" " * size,
        "base64": b'{"message":{"data":"' + b"QUFB" * (size // 4),
    }


READERS: dict[str, Callable[[bytes], object]] = {
    "decode_member": lambda text: decode_member(text, "q", max_bytes=20_000_000),
    "decode_body": lambda text: decode_body(text, max_bytes=20_000_000),
    "salvage": lambda text: salvage(text, frozenset({("id",), ("data", "id")})),
    "repaired": repaired,
    "check_json": check_json,
    "split_object": split_object,
    "canonical_fields": lambda text: canonical_fields(text, frozenset({"id"})),
    "decode_result": decode_result,
    "decode_retry_answer": decode_retry_answer,
    "structured event": lambda text: decode_event([(b"content-type", b"application/cloudevents+json")], text),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("form", open_forms(8))
def test_every_reader_ends_for_every_unfinished_form(reader: str, form: str) -> None:
    """As a value or an error of its own; that it takes linear time is measured in tests/bench."""
    for size in (1_000, 64_000):
        try:
            READERS[reader](open_forms(size)[form])
        except (InvalidRequest, InvalidEvent, Malformed):
            continue
