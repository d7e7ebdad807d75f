"""Token usage of a response body."""

from __future__ import annotations

import pytest

from handlers.contract.result import token_usage


@pytest.mark.parametrize(
    ("body", "tokens"),
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
def test_token_usage_is_read_from_openai_bodies_only(body: str | bytes, tokens: tuple[int, int] | None) -> None:
    usage = token_usage(body)
    assert (usage and (usage.input_tokens, usage.output_tokens)) == tokens
