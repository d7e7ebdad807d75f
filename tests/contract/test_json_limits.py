"""Salvage against a plain model of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.contract.lenient_json import salvage
from tests.contract.json_texts import JSON, STRANGE, broken, text

PATHS = frozenset({("id",), ("data", "id"), ("internal", "request_token")})


def at(value: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


@given(value=STRANGE | JSON)
def test_salvage_finds_every_requested_string_of_valid_text(value: Any) -> None:
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
def test_salvage_reads_strings_of_broken_text(wire: bytes, found: dict[tuple[str, ...], str]) -> None:
    assert salvage(wire, PATHS) == found


def test_salvage_searches_only_the_beginning_of_a_large_text() -> None:
    padding = b" " * 70_000
    assert salvage(b'{"id":"a",' + padding, PATHS) == {("id",): "a"}
    assert salvage(b"{" + padding + b'"id":"a"', PATHS) == {}
