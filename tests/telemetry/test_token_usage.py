"""Tokens of an answer: read where it says them, and nothing else of it."""

from __future__ import annotations

import pytest

from handlers.telemetry.token_usage import token_usage


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        ('{"usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}, "choices": []}', (3, 5)),
        (b'{"usage": {"input_tokens": 3, "output_tokens": 5}}', (3, 5)),
        ('{"usage": {"prompt_tokens": 3}}', (3, 0)),  # an embedding writes nothing
        ('{"usage": null}', None),
        ('{"choices": []}', None),
        ('{"usage": {"prompt_tokens": "3"}}', None),
        ('{"usage": {"prompt_tokens": -3}}', None),
        ('data: {"usage": {"prompt_tokens": 3}}\n\n', None),
        ("[" * 100_000, None),
        ("", None),
        (b"\xff", None),
        ('{"usage": {"prompt_tokens": ' + "9" * 5_000 + "}}", None),
    ],
)
def test_usage_is_read_where_the_body_says_it(body: str | bytes, usage: tuple[int, int] | None) -> None:
    assert token_usage(body) == usage
