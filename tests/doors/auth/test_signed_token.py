"""Whatever a stranger sends as a token or a header, it is taken apart or refused; nothing else happens."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from handlers.doors.auth.google_keys import decode_keys
from handlers.doors.auth.refusal import MAX_TOKEN_BYTES, Refusal, bearer_token
from handlers.doors.auth.signed_token import MalformedToken, decode_segment, split_token
from tests.doors.auth.token_issuer import claims, segment, signed

anything = st.one_of(
    st.binary(max_size=300),
    st.text(max_size=100).map(str.encode),
    st.from_regex(rb"[A-Za-z0-9_=-]{0,40}(\.[A-Za-z0-9_=-]{0,40}){0,4}", fullmatch=True),
    st.lists(st.binary(max_size=60).map(segment), min_size=3, max_size=3).map(b".".join),
    st.recursive(
        st.booleans() | st.text(max_size=5), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    ).map(lambda value: segment(repr(value).replace("'", '"').encode()) + b".AAAA.AAAA"),
)


@given(anything)
@example(b"e30.e30.AAAA")  # {} in both
@example(segment(b'{"alg": "RS256", "kid": null}') + b".e30.AAAA")
@example(segment(b'{"x": ' + b"[" * 6_000) + b".e30.AAAA")
def test_a_token_is_three_parts_with_a_header_or_malformed(token: bytes) -> None:
    try:
        parts = split_token(token)
    except MalformedToken:
        return
    assert token.startswith(parts.signed + b".")
    assert isinstance(parts.header.alg, str)
    assert isinstance(parts.header.kid, str)


def test_the_parts_are_those_that_were_signed() -> None:
    token = signed(claims(1_000.0))
    parts = split_token(token)
    assert (parts.header.alg, parts.header.kid) == ("RS256", "one")
    assert segment(parts.claims) in parts.signed
    assert token == parts.signed + b"." + segment(parts.signature)


@given(st.binary(max_size=200))
def test_a_segment_decodes_to_what_was_encoded(content: bytes) -> None:
    if content:
        assert decode_segment(segment(content)) == content


@pytest.mark.parametrize("segment", [b"A", b"AB=C", b"A B C", b"\xff\xff", b"AA\nA"])
def test_a_segment_in_another_form_is_malformed(segment: bytes) -> None:
    with pytest.raises(MalformedToken):
        decode_segment(segment)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"authorization", b"host", b"x"]), anything | anything.map(b"Bearer ".__add__)
        )
    )
)
def test_a_token_is_found_in_the_one_header_or_refused(headers: list[tuple[bytes, bytes]]) -> None:
    found = bearer_token(headers)
    if isinstance(found, Refusal):
        assert found.status == 401
    else:
        (value,) = (value for name, value in headers if name == b"authorization")
        assert 0 < len(found) <= MAX_TOKEN_BYTES
        assert value[7:].strip(b" ") == found


@given(anything)
def test_whatever_a_key_server_sends_is_keys_or_none(body: bytes) -> None:
    assert decode_keys(body) == {}
