"""Go's leniency, the cutting of deep texts, and the order of repeated fields."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.contract import lenient_json
from handlers.contract.lenient_json import (
    MAX_DEPTH,
    MAX_PAIRS,
    Malformed,
    canonical_fields,
    check_json,
    is_unicode,
    repaired,
    split_object,
)
from handlers.contract.request import decode_member, encode_retry

TRICKY = st.text(st.sampled_from('[]{}"\\,: a'), max_size=8)
NESTED = st.recursive(
    TRICKY | st.integers(0, 9) | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TRICKY, inner, max_size=4),
    max_leaves=30,
)


@pytest.fixture
def shallow_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of more than three levels count as deep, every object does, and all are read a few bytes at a time."""
    monkeypatch.setattr(lenient_json, "_PIECE_LEVELS", LEVELS)
    monkeypatch.setattr(lenient_json, "_STEP_BYTES", 5)
    monkeypatch.setattr(lenient_json, "_parts_decoder", ShallowDecoder(0))
    monkeypatch.setattr(lenient_json, "_raw_decoder", ShallowDecoder(LEVELS))


LEVELS = 3


class ShallowDecoder:
    """A decoder that fails for more levels than `most`, as the real one does for more than about a thousand."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._decoder = msgspec.json.Decoder(msgspec.Raw)

    def decode(self, text: bytes) -> Any:
        outside = re.sub(rb'"(?:[^"\\]|\\.)*+("|$)', b"", bytes(text))
        steps = [(each in b"[{") - (each in b"]}") for each in outside]
        if max(itertools.accumulate(steps, initial=0)) > self._most:
            raise RecursionError
        return self._decoder.decode(text)


def is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


@pytest.mark.usefixtures("shallow_pieces")
@given(value=st.dictionaries(TRICKY, NESTED, max_size=5), cut=st.integers(0, 400))
def test_a_deep_text_is_split_like_a_shallow_one(value: Any, cut: int) -> None:
    text = json.dumps(value).encode()
    assert {name: json.loads(bytes(raw)) for name, raw in split_object(text).items()} == value
    for broken in (text[:cut], text.replace(b"]", b"}", 1), text + b"]"):
        try:
            check_json(broken)
            accepted = True
        except Malformed:
            accepted = False
        assert accepted is is_json(broken)


@pytest.mark.parametrize("levels", [1, 1_500, MAX_DEPTH])
def test_nesting_is_accepted_as_deep_as_go_does(levels: int) -> None:
    text = b"[" * levels + b"]" * levels
    check_json(text)
    inner = text[1:-1] or b"0"  # the object around it is a level, too
    assert bytes(split_object(b'{"a":' + inner + b"}")["a"]) == inner


@pytest.mark.parametrize(
    "text", [b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), b"[" * 5_000, b"[" * 5_000 + b"}" * 5_000]
)
def test_deeper_and_broken_texts_are_refused(text: bytes) -> None:
    with pytest.raises(Malformed):
        check_json(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (rb'"\ud83d"', rb'"\ufffd"'),
        (rb'"\ude00x"', rb'"\ufffdx"'),
        (rb'"\ud83d\ude00"', rb'"\ud83d\ude00"'),
        (rb'"\ud83d\ud83d\ude00"', rb'"\ufffd\ud83d\ude00"'),
        (rb'"\ud83d\ude00\ude00"', rb'"\ud83d\ude00\ufffd"'),
        (rb'"\\ud83d"', rb'"\\ud83d"'),
        (rb'"\\\ud83d"', rb'"\\\ufffd"'),
        (rb'"\\ud83d\ude00"', rb'"\\ud83d\ufffd"'),
        (rb'"\uD83D\n"', rb'"\ufffd\n"'),
        (b'"\xff\xe2\x82"', '"\ufffd\ufffd\ufffd"'.encode()),
        (b'"\xed\xa0\x80"', '"\ufffd\ufffd\ufffd"'.encode()),
        ('"é語😀"'.encode(), '"é語😀"'.encode()),
    ],
)
def test_invalid_unicode_is_replaced_as_in_go(text: bytes, expected: bytes) -> None:
    assert repaired(text) == expected


@given(text=st.text())
def test_valid_text_is_not_touched(text: str) -> None:
    for whole in (json.dumps(text).encode(), json.dumps(text, ensure_ascii=False).encode()):
        assert repaired(whole) == whole


def test_a_lone_surrogate_is_not_valid_unicode() -> None:
    assert is_unicode("é語😀")
    assert not is_unicode("a\ud83d")
    assert not is_unicode("\udcff")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'{"id":"a","ID":"b"}', {"id": "b"}),
        (b'{"ID":"b","id":"a"}', {"id": "a"}),
        (b'{"Id":"b","id":null}', {"id": "b"}),
        (b'{"id":"a","x":1,"id":null}', {"id": "a", "x": 1}),
        (b'{"id":"a", "id" : "b", "Id":null , "id":null}', {"id": "b"}),
        ('{"metadataé":1}'.encode(), {"metadataé": 1}),
        (b'{"Metadata":{"a":"1","b":"2"},"metadata":{"b":"3"}}', {"metadata": {"a": "1", "b": "3"}}),
        (b'{"Metadata":{"a":"1"},"metadata":null}', {}),
        (b'{"payload":{"a":1},"Payload":null}', {"payload": None}),
        (b'{"Payload":{"a":[1,"]"]},"payload":{"a":2},"Q":"}"}', {"payload": {"a": 2}, "Q": "}"}),
    ],
)
def test_fields_are_matched_as_go_does(text: bytes, expected: dict[str, object]) -> None:
    names = frozenset({"id", "metadata", "payload"})
    fields = canonical_fields(text, names, maps=frozenset({"metadata"}), nullable="payload")
    assert {name: json.loads(bytes(raw)) for name, raw in fields.items()} == expected


@pytest.mark.parametrize(
    "member",
    [
        b'{"Internal":{"Retry_Count":2,"Request_Token":"t"},"Request_Kind":"redis","Data":{"ID":"a","Deadline":"9","Payload":{}}}',
        rb'{"id":"a","deadline":"9","payload":{"p":"\ud83d"},"metadata":{"k":null}}',
        b'{"id":"a","deadline":"9","payload":{},"x":"\xff"}',
        b'{"id":"a","deadline":"9","payload":' + b'{"a":' * 3_000 + b"1" + b"}" * 3_001,
    ],
)
def test_leniently_decoded_members_can_be_queued_again(member: bytes) -> None:
    first = decode_member(member, "q").request
    again = decode_member(encode_retry(member, queue="q", attempt=first.attempt + 1, score=9.0), "q").request
    assert (again.id, again.deadline, again.payload) == ("a", 9.0, first.payload)
    assert (again.attempt, again.request_token) == (first.attempt + 1, first.request_token)
    assert again.metadata == first.metadata


@pytest.mark.parametrize("repeated", [b'"metadata":{},', b'"metadata":{"a":"b"},', b'"other":1,', b'"other":[],'])
def test_an_object_that_repeats_names_is_read_up_to_a_number_of_fields(repeated: bytes) -> None:
    """Each such field is read one by one, which costs a thousand times more than a field of an ordinary object."""
    maps = frozenset({"metadata"})

    def read(repeats: int) -> object:
        text = b'{"metadata":{"x":"y"},"METADATA":null,' + repeated * repeats + b'"id":"i"}'
        return canonical_fields(text, frozenset({"id", "metadata"}), maps=maps)

    assert read(MAX_PAIRS - 3)
    with pytest.raises(Malformed, match="20000 fields"):
        read(MAX_PAIRS - 2)
