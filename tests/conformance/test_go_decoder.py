"""Our decoder accepts what the reference's accepts, with the same meaning and payload bytes."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handlers.contract.errors import InvalidRequest
from handlers.contract.request import LATEST_DEADLINE, MAX_ID_LENGTH, Request, decode_member
from tests.conformance import go_decoder
from tests.conformance.go_decoder import Meaning, Rejected

SPACE = st.sampled_from([b"", b"", b" ", b"\n", b"\t ", b"\r\n"])
PLAIN = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters='"\\'), max_size=6)
PIECES = st.one_of(
    PLAIN.map(str.encode),
    st.sampled_from(
        [
            rb"\ud83d",
            rb"\ude00",
            rb"\ud83d\ude00",
            rb"\uD83D\n",
            rb"\\ud83d",
            rb"\u0041",
            rb"\/",
            rb"\"",
            rb"\\",
        ]
    ),
    st.sampled_from([b"\xff", b"\xe2\x82", b"\xed\xa0\x80", b"\xc0\xaf", b"\x7f"]),
)
STRINGS = st.lists(PIECES, max_size=4).map(lambda pieces: b'"' + b"".join(pieces) + b'"')
NUMBERS = st.one_of(
    st.integers(-(2**65), 2**65).map(lambda number: str(number).encode()),
    st.sampled_from([b"0", b"-0", b"1.0", b"1e3", b"1E400", b"-1.5e-7", b"12345678901234567890123"]),
)
DEEP = st.sampled_from([2, 70, 1_200]).map(lambda levels: b"[" * levels + b"]" * levels)
SCALARS = st.one_of(STRINGS, NUMBERS, st.sampled_from([b"null", b"true", b"false"]))


@st.composite
def objects(draw: st.DrawFn, names: st.SearchStrategy[bytes], values: st.SearchStrategy[bytes]) -> bytes:
    """A JSON object with white space anywhere and with names that may repeat."""
    pairs = draw(st.lists(st.tuples(names, values), max_size=4))
    space = [draw(SPACE) for _ in range(4)]
    members = [space[0] + name + space[1] + b":" + space[2] + value + space[3] for name, value in pairs]
    return b"{" + (b",".join(members) or space[0]) + b"}"


VALUES: st.SearchStrategy[bytes] = st.recursive(
    SCALARS,
    lambda inner: objects(STRINGS, inner) | st.lists(inner, max_size=3).map(lambda each: b"[" + b",".join(each) + b"]"),
    max_leaves=6,
)
MAPS = st.one_of(objects(STRINGS, STRINGS | st.just(b"null")), st.just(b"null"))
SHORTEST = b'""'
IDS = st.integers(0, 9).flatmap(
    lambda chance: st.just(b"null") if chance == 9 else STRINGS.map(lambda text: text if text != SHORTEST else b'"a"')
)
DEADLINES = st.integers(1, 4_000_000_000).map(lambda number: str(number).encode())
STRANGE = st.one_of(VALUES, DEEP)
"""A value of any type: the reference may reject the member for it."""


@st.composite
def named(draw: st.DrawFn, name: str) -> bytes:
    """The name as some producer writes it: in any letter case, escaped, with a letter that folds to ASCII."""
    written = draw(st.sampled_from(_WRITINGS))(name)
    return json.dumps(written, ensure_ascii=draw(st.booleans())).encode()


_WRITINGS: list[Callable[[str], str]] = [
    str,
    str,
    str.upper,
    str.title,
    lambda name: name.replace("s", "\u017f", 1).replace("k", "\u212a", 1),
]


@st.composite
def fields(draw: st.DrawFn, kinds: dict[str, st.SearchStrategy[bytes]], always: tuple[str, ...]) -> bytes:
    """An object of fields in any order, some repeated, some null, some of another type, some unknown."""
    chosen = [*always, *draw(st.lists(st.sampled_from([*kinds]), max_size=5))]
    pairs = []
    for name in draw(st.permutations(chosen)):
        value = draw(STRANGE if draw(st.integers(0, 30)) == 0 else kinds[name])
        pairs.append(draw(named(name)) + draw(SPACE) + b":" + draw(SPACE) + value)
    pairs += draw(st.lists(st.tuples(STRINGS, STRANGE).map(b":".join), max_size=2))
    return b"{" + draw(SPACE) + b",".join(draw(st.permutations(pairs))) + draw(SPACE) + b"}"


BODY = fields(
    {
        "id": IDS,
        "created": DEADLINES | st.just(b"null"),
        "deadline": DEADLINES,
        "payload": objects(STRINGS, VALUES | DEEP) | st.just(b"null"),
        "metadata": MAPS,
        "headers": MAPS,
        "endpoint": STRINGS | st.just(b"null"),
        "model": STRINGS | st.just(b"null"),
        "result_queue_name": STRINGS | st.just(b"null"),
    },
    ("id", "deadline", "payload"),
)
INTERNAL = fields(
    {
        "retry_count": st.sampled_from([b"0", b"3", b"null"]),
        "request_token": STRINGS,
        "result_queue_name": STRINGS | st.just(b"null"),
        "labels": MAPS,
        "enqueue_seq": st.sampled_from([b"0", b"7", b"null"]),
        "transport_correlation_id": STRINGS,
    },
    (),
)
ENVELOPE = fields(
    {"internal": INTERNAL | st.just(b"null"), "request_kind": st.just(b'"redis"'), "data": BODY},
    ("internal", "request_kind", "data"),
)


def _is_within_our_limits(meaning: Meaning) -> bool:
    """Ours refuses ids that no key can hold; `docs/results.md` lists our limits."""
    return "\0" not in meaning.id and len(meaning.id) <= MAX_ID_LENGTH


def _meaning(request: Request) -> tuple[object, ...]:
    return (
        request.id,
        request.deadline,
        int(request.created or 0),
        dict(request.metadata),
        dict(request.headers),
        request.endpoint,
        request.model,
        dict(request.labels),
        request.request_token,
        request.attempt,
        request.result_queue_name,
    )


def _check(member: bytes) -> Meaning | None:
    """Compare both decoders; returns the oracle's reading, None where Go rejects the member."""
    try:
        expected = go_decoder.decode(member)
    except Rejected:
        return None
    if not _is_within_our_limits(expected):
        return None
    found = decode_member(member, "q").request
    assert _meaning(found) == (
        expected.id,
        expected.deadline,
        expected.created if 0 <= expected.created <= LATEST_DEADLINE else 0,  # ours only measures with it
        expected.metadata,
        expected.headers,
        expected.endpoint,
        expected.model,
        expected.labels,
        expected.request_token,
        expected.retry_count,
        expected.result_queue_name,
    )
    if _is_unicode(expected.payload):
        assert found.payload == expected.payload
    else:
        assert _readable(found.payload) == _readable(expected.payload)
    return expected


def _is_unicode(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return b"\\ud" not in text.lower()


def _readable(payload: bytes) -> object:
    """The payload as Go reads it: `U+FFFD` where it is not Unicode. Names and strings of all levels, in order."""
    at, found = 0, []
    while (quote := payload.find(b'"', at)) >= 0:
        at = go_decoder.string_end(payload, quote)
        found.append(go_decoder.unquoted(payload[quote:at]))
    return found


@settings(max_examples=60)
@given(member=BODY)
def test_a_bare_body_that_go_accepts_has_the_same_meaning(member: bytes) -> None:
    _check(member)


@settings(max_examples=60)
@given(member=ENVELOPE)
def test_an_envelope_that_go_accepts_has_the_same_meaning(member: bytes) -> None:
    _check(member)


ACCEPTED = {
    "any letter case": b'{"ID":"a","DeadLine":9,"PAYLOAD":{},"MetaData":{"Ab":"c"}}',
    "letters that fold to ASCII": '{"id":"a","deadline":9,"payload":{},"header\u017f":{"a":"b"}}'.encode(),
    "null in a string map": b'{"id":"a","deadline":9,"payload":{},"metadata":{"k":null}}',
    "null fields": b'{"id":"a","id":null,"deadline":9,"payload":null,"model":null,"headers":null}',
    "lone surrogates": rb'{"id":"a\ud83d","deadline":9,"payload":{"p":"\ude00"},"metadata":{"\ud83d":"\ud83dx"}}',
    "invalid UTF-8": b'{"id":"a\xff","deadline":9,"payload":{},"x":"\xc0\xaf"}',
    "10,000 levels": b'{"id":"a","deadline":9,"payload":{"p":' + b"[" * 9_998 + b"]" * 9_998 + b"}}",
    "repeated fields": b'{"id":"a","deadline":8,"payload":{"a":1},"id":"b","Deadline":9,"payload":{"b":2}}',
    "a map that is repeated": b'{"id":"a","deadline":9,"payload":{},"metadata":{"a":"1"},"Metadata":{"b":"2"}}',
    "a map that is repeated under one name": (
        b'{"id":"a","deadline":9,"payload":{},"metadata":{"a":"1"},"metadata":{},"metadata":{"b":"2"}}'
    ),
    "a repeated internal, one of them null": (
        b'{"internal":{"labels":{"a":"1"},"request_token":"t"},"internal":{"Labels":{"b":"2"}},"Internal":null,'
        b'"request_kind":"redis","data":{"id":"a","deadline":9,"payload":{}}}'
    ),
    "numbers of any size": b'{"id":"a","deadline":9,"payload":{"n":1E400,"m":123456789012345678901234567890}}',
    "unknown fields": b'{"id":"a","deadline":9,"payload":{},"new":{"a":[1,{"b":null}]}}',
    "an envelope in any letter case": (
        b'{"Internal":{"Request_Token":"t","LABELS":{"a":null}},"DATA":{"Id":"a","deadline":9,"payload":{}}}'
    ),
}
REJECTED = {
    "10,001 levels": b'{"id":"a","deadline":9,"payload":{"p":' + b"[" * 9_999 + b"]" * 9_999 + b"}}",
    "a fraction in an integer": b'{"id":"a","deadline":9.5,"payload":{}}',
    "an integer past 64 bits": b'{"id":"a","deadline":9,"created":9223372036854775808,"payload":{}}',
    "a number for a string": b'{"id":7,"deadline":9,"payload":{}}',
    "a control character in a string": b'{"id":"a\n","deadline":9,"payload":{}}',
    "an unknown field that is not JSON": b'{"id":"a","deadline":9,"payload":{},"x":01}',
    "two values": b'{"id":"a","deadline":9,"payload":{}} {}',
    "a comma at the end": b'{"id":"a","deadline":9,"payload":{},}',
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_each_leniency_of_go_is_accepted_with_the_same_meaning(name: str) -> None:
    assert _check(ACCEPTED[name]) is not None, "the oracle must accept it, or this compares nothing"


@pytest.mark.parametrize("name", REJECTED)
def test_the_oracle_rejects_what_go_rejects(name: str) -> None:
    with pytest.raises(Rejected):
        go_decoder.decode(REJECTED[name])


@pytest.mark.parametrize("name", ["10,001 levels", "a control character in a string", "two values"])
def test_our_decoder_names_the_rejected_field(name: str) -> None:
    with pytest.raises(InvalidRequest):
        decode_member(REJECTED[name], "q")
