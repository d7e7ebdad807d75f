"""Errors name the kind of JSON that they got, and show nothing of its content."""

from __future__ import annotations

import pytest

from handlers.contract.errors import InvalidRequest
from handlers.contract.lenient_json import shape_of
from handlers.contract.request import decode_member


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        (b"", "nothing"),
        (b" \n", "nothing"),
        (b" {}", "a JSON object"),
        (b"[secret", "a JSON array"),
        (b'"secret"', "a JSON string"),
        (b"-1", "a JSON number"),
        (b"null", "null"),
        (b"true", "true"),
        (b"nonsense", "text that is not JSON"),
        (b"\xff", "text that is not JSON"),
    ],
)
def test_a_text_is_named_by_its_kind(text: bytes, shape: str) -> None:
    assert shape_of(text) == shape


@pytest.mark.parametrize(
    ("member", "got"),
    [
        (b"garbage", "text that is not JSON"),
        (b"[1]", "a JSON array"),
        (b"7", "a JSON number"),
        (b'{"id":"a"', "JSON that is cut off"),
        (b'{"data":{},"internal":{},"request_kind":5}', "a JSON number in request_kind"),
        (b'{"data":{},"internal":{"retry_count":"x"},"request_kind":""}', "str in internal.retry_count"),
    ],
)
def test_a_dead_letter_describes_its_invalid_member(member: bytes, got: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode_member(member, "queue")
    assert refused.value.found == got
