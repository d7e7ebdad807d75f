"""Depth and salvage against plain models of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.contract.json_limits import MAX_DEPTH, is_too_deep, salvage
from tests.contract.json_texts import JSON, STRANGE, broken, text

PATHS = frozenset({("id",), ("data", "id"), ("internal", "request_token")})
# Brackets inside of strings, escapes before quotes: what a count alone would get wrong.
TRICKY = st.text(st.sampled_from('[]{}"\\,: a'), max_size=10)
NESTED = st.recursive(
    TRICKY | st.integers(0, 9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TRICKY, inner, max_size=4),
    max_leaves=30,
)


def depth(value: Any) -> int:
    """The plain model: how many objects and arrays lie inside of each other."""
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    return 0


@given(value=NESTED, limit=st.integers(0, 8))
def test_depth_agrees_with_a_plain_recursion(value: Any, limit: int) -> None:
    assert is_too_deep(json.dumps(value).encode(), limit) is (depth(value) > limit)


@pytest.mark.parametrize("opener", [b"[", b'{"a":'])
def test_the_limit_is_exact_where_there_are_many_brackets(opener: bytes) -> None:
    closer = b"]" if opener == b"[" else b"}"
    many = b",[]" * 100
    for levels, is_deep in ((MAX_DEPTH - 1, False), (MAX_DEPTH, True)):
        assert is_too_deep(b"[" + opener * levels + b"1" + closer * levels + many + b"]") is is_deep


def at(value: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


@given(value=STRANGE | JSON)
def test_of_a_whole_text_every_string_that_is_asked_for_is_found(value: Any) -> None:
    expected = {path: at(value, path) for path in PATHS if isinstance(at(value, path), str)}
    assert salvage(text(value), PATHS) == expected
    assert salvage(json.dumps(value).encode(), PATHS) == expected, "escapes are read as well"


@given(wire=broken() | st.binary(max_size=200))
def test_a_broken_text_never_raises(wire: bytes) -> None:
    assert set(salvage(wire, PATHS)) <= PATHS


@pytest.mark.parametrize(
    ("wire", "found"),
    [
        (b'{"id":"a","payload":{"x', {("id",): "a"}),
        (b'{"payload":{"id":"inner"},"id":"outer"', {("id",): "outer"}),
        (b'{"payload":[{"id":"inner"}]', {}),
        (b'[{"id":"a"}]', {}),
        (b'{"id":"a","id":"b"', {("id",): "b"}),
        (b'{"id":"a","id":"\\ud800"', {}),
        (b'{"x":"id","y":"id"', {}),
        (b'{"id":5', {}),
        (
            b'{"data":{"id":"a"},"internal":{"request_token":"t"',
            {("data", "id"): "a", ("internal", "request_token"): "t"},
        ),
        (b'{"id":"\xff"', {}),
        (b'{"id":"cut', {}),
    ],
)
def test_what_can_be_read_of_a_broken_text(wire: bytes, found: dict[tuple[str, ...], str]) -> None:
    assert salvage(wire, PATHS) == found


def test_only_the_beginning_of_a_large_text_is_searched() -> None:
    padding = b" " * 70_000
    assert salvage(b'{"id":"a",' + padding, PATHS) == {("id",): "a"}
    assert salvage(b"{" + padding + b'"id":"a"', PATHS) == {}


def test_brackets_in_a_prompt_are_no_nesting() -> None:
    """Prompts hold code: what counts is the JSON around them."""
    assert not is_too_deep(text({"messages": [{"content": "a[[[{{{" * 500, "role": '"['}] * 30}))
