"""Reading untrusted bytes takes linear time: no backtracking patterns, counted work per byte."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from re import _constants as codes  # type: ignore[attr-defined]  # the parser has no public names
from re import _parser  # type: ignore[attr-defined]  # as above
from typing import Any

import pytest

from handlers.batch.lines import custom_id_of, decode_line, decode_output
from handlers.contract import lenient_json
from handlers.contract.errors import InvalidEvent, InvalidRequest
from handlers.contract.events import DATA_AT, Event, decode_answer, decode_event, decode_retry_answer, from_header
from handlers.contract.lenient_json import (
    SALVAGED_BYTES,
    Malformed,
    canonical_fields,
    check_json,
    has_more_fields,
    repaired,
    salvage,
    split_object,
)
from handlers.contract.request import decode_body, decode_member, encode_retry, encode_whole, unread, with_payload
from handlers.contract.result import answered_result, decode_result, is_mostly_controls, token_usage
from handlers.doors.auth.google_keys import decode_keys
from handlers.doors.cloudevents.foreign_event import EventFields, as_request, read_event
from handlers.doors.door import Delivery
from handlers.doors.pubsub.push import decode_push
from handlers.gates.metric.endpoint_scrape import samples_of
from handlers.poller.maintenance import oldest_age_seconds
from handlers.status.overview import fresh_pollers, read_failures

ROOT = Path(__file__).parents[2]


def patterns() -> Iterator[tuple[str, str | bytes]]:
    """Every pattern in the source: literals, and those that `lenient_json` builds."""
    for path in sorted((ROOT / "handlers").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
                continue
            is_re = isinstance(node.func.value, ast.Name) and node.func.value.id == "re"
            literal = node.args[0]
            if is_re and isinstance(literal, ast.Constant) and isinstance(literal.value, str | bytes):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", literal.value
    for name, value in vars(lenient_json).items():
        if isinstance(value, re.Pattern):
            yield f"{lenient_json.__name__}.{name}", value.pattern


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
    """Nested unbounded repeats, and adjacent ones with a common first character; possessive ones cannot backtrack."""
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


# Reviewed by hand: the length of their input is bounded.
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
def test_the_lint_finds_patterns_that_backtrack(pattern: str) -> None:
    assert list(faults(_parser.parse(pattern)))


@pytest.mark.parametrize("pattern", ["(?:a*+b)*+", "a+b+", "[^/]+/x", "(a{1,9})*", r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'])
def test_the_lint_passes_patterns_that_do_not_backtrack(pattern: str) -> None:
    assert not list(faults(_parser.parse(pattern)))


def open_forms(size: int) -> dict[str, bytes]:
    """Unfinished texts of about `size` bytes."""
    head = b'{"id":"x","a":'
    return {
        "escaped quotes": head + b'"' + rb"\"" * (size // 2),
        "escaped quotes, cut elsewhere": b" " + head + b'"' + rb"\"" * (size // 2),
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
        "control characters": head + b'"' + b"\x01" * size,
        "names": b'{"id":"x",' + b",".join(b'"%d":1' % number for number in range(size // 10)),
        "spaces": head + b" " * size,
        "base64": b'{"message":{"data":"' + b"QUFB" * (size // 4),
    }


def structured_at(text: bytes) -> object:
    headers = [
        (b"content-type", b"application/cloudevents+json"),
        (DATA_AT.encode(), b"%d" % (len(text) // 2)),
    ]
    return decode_event(headers, text)


def foreign_request(text: bytes, *, is_payload: bool) -> bytes:
    event = Event(id="e", source="/s", type="t", data=text)
    return as_request(event, Delivery([], text), EventFields(tenant_from="source", is_payload=is_payload), 0.0)


def read_gauge(text: bytes) -> object:
    try:
        return samples_of(b'gauge{a="' + text + b'"} 1\n', "gauge", {"a": "b"})
    except ValueError:  # the parser's own; its caller counts the source as missing
        return None


PENDING = decode_member(b'{"id":"x","deadline":1,"payload":null}', "q")
STRUCTURED = [(b"content-type", b"application/cloudevents+json")]
MOST = 20_000_000

READERS: dict[str, Callable[[bytes], object]] = {
    "contract.request.decode_member": lambda text: decode_member(text, "q", max_bytes=MOST),
    "contract.request.unread": lambda text: unread(text, "too large"),
    "contract.request.with_payload": lambda text: with_payload(PENDING, text, max_bytes=MOST),
    "contract.request.encode_retry": lambda text: encode_retry(text, queue="q", attempt=1, score=1.0),
    "contract.request.encode_whole": lambda text: encode_whole(text, b"{}"),
    "contract.request.decode_body": lambda text: decode_body(text, max_bytes=MOST),
    "contract.lenient_json.salvage": lambda text: salvage(text, frozenset({("id",), ("data", "id")})),
    "contract.lenient_json.has_more_fields": lambda text: has_more_fields(text, 1_000_000_000),
    "contract.lenient_json.repaired": repaired,
    "contract.lenient_json.check_json": check_json,
    "contract.lenient_json.split_object": split_object,
    "contract.lenient_json.canonical_fields": lambda text: canonical_fields(text, frozenset({"id"})),
    "contract.result.decode_result": decode_result,
    "contract.result.answered_result": lambda text: answered_result("x", "", 200, text, keeps_bytes=True),
    "contract.result.is_mostly_controls": is_mostly_controls,
    "contract.result.token_usage": token_usage,
    "contract.events.decode_retry_answer": decode_retry_answer,
    "contract.events.decode_answer": decode_answer,
    "contract.events.decode_event": lambda text: decode_event(STRUCTURED, text),
    "contract.events.decode_event with the place of its data": structured_at,
    "contract.events.from_header": lambda text: from_header("a", text),
    "doors.pubsub.push.decode_push": lambda text: decode_push(Delivery([], text)),
    "doors.cloudevents.foreign_event.read_event": lambda text: read_event(STRUCTURED, text),
    "doors.cloudevents.foreign_event.as_request": lambda text: foreign_request(text, is_payload=False),
    "doors.cloudevents.foreign_event.as_request of a payload": lambda text: foreign_request(text, is_payload=True),
    "doors.auth.google_keys.decode_keys": decode_keys,
    "batch.lines.custom_id_of": custom_id_of,
    "batch.lines.decode_line": lambda text: decode_line(1, text),
    "batch.lines.decode_output": lambda text: decode_output("b", text),
    "gates.metric.endpoint_scrape.samples_of": read_gauge,
    "poller.maintenance.oldest_age_seconds": lambda text: oldest_age_seconds([text], "q", 0.0),
    "status.overview.fresh_pollers": lambda text: fresh_pollers({"a": text}, 0.0),
    "status.overview.read_failures": lambda text: read_failures([text]),
}
"""Public functions that read bytes of others, by module and name."""

HARMLESS = {
    "contract.events.encode_request": "copies a body that was decoded before",
    "contract.events.is_event": "reads headers, which the server bounds",
    "contract.events.join_structured": "copies",
    "contract.lenient_json.shape_of": "reads the first 64 bytes",
    "contract.request.decode_body_aside": "calls decode_body",
    "contract.result.filled_result": "calls answered_result",
    "doors.auth.bearer.bearer_token": "reads headers, which the server bounds",
    "doors.cloudevents.foreign_event.with_tenant": "reads headers, which the server bounds, and attributes",
    "doors.cloudevents.foreign_event.write_event": "writes what we made",
    "doors.door.handle": "hands the delivery to the door's own reader",
    "batch.start.file_format": "reads the first 8 bytes",
    "batch.start.check_text_file": "reads the first 8 bytes",
    "batch.lines.error_kind": "reads a line that we wrote",
    "poller.settlement.ack": "copies",
}
ROOMS = ("contract", "doors", "batch", "status", "client", "forward", "gates", "poller")
_TAKES_BYTES = re.compile(r"\b(bytes|Delivery|Headers)\b")


def functions_of_bytes() -> Iterator[str]:
    """The public functions of the rooms with a parameter that holds bytes."""
    for path in sorted(path for room in ROOMS for path in (ROOT / "handlers" / room).rglob("*.py")):
        module = ".".join(path.relative_to(ROOT / "handlers").with_suffix("").parts)
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
                continue
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            if any(_TAKES_BYTES.search(ast.unparse(each.annotation)) for each in arguments if each.annotation):
                yield f"{module}.{node.name}"


def test_every_reader_of_bytes_is_tested_here_or_listed_as_harmless() -> None:
    """One that is written later fails here, until it is in `READERS` (or `HARMLESS`, with the reason)."""
    found = set(functions_of_bytes())
    tried = {name.split()[0] for name in READERS}
    assert found - tried - HARMLESS.keys() == set()
    assert (tried | HARMLESS.keys()) - found == set(), "renamed, or gone"


REFUSALS = (InvalidRequest, InvalidEvent, Malformed)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("form", open_forms(8))
def test_every_reader_ends_for_every_unfinished_form(reader: str, form: str) -> None:
    """As a value or an error of its own; that the time is linear is measured in `tests/bench/test_linear_time.py`."""
    for size in (1_000, 2 * SALVAGED_BYTES):
        try:
            READERS[reader](open_forms(size)[form])
        except REFUSALS as error:
            assert str(error), "a refusal names the fault"
