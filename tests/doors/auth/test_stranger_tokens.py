"""Any token or header from an unauthenticated caller is decoded or refused without side effects."""

from __future__ import annotations

import asyncio

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from hypothesis import example, given
from hypothesis import strategies as st

from handlers.doors.auth.bearer import MAX_TOKEN_BYTES, bearer_token
from handlers.doors.auth.google_keys import SigningKeys, SigningKeysOptions, decode_keys
from handlers.doors.auth.oidc import PushIdentity, PushIdentityOptions
from handlers.doors.door import Refusal
from tests.doors.auth.token_issuer import ACCOUNT, AUDIENCE, claims, private_key, segment, signed

anything = st.one_of(
    st.binary(max_size=300),
    st.text(max_size=100).map(str.encode),
    st.from_regex(rb"[A-Za-z0-9_=-]{0,40}(\.[A-Za-z0-9_=-]{0,40}){0,4}", fullmatch=True),
    st.lists(st.binary(max_size=60).map(segment), min_size=3, max_size=3).map(b".".join),
    st.recursive(
        st.booleans() | st.text(max_size=5), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    ).map(lambda value: segment(repr(value).replace("'", '"').encode()) + b".AAAA.AAAA"),
)


NOW = 1_800_000_000.0


class _OneKey(SigningKeys):
    """The key `one`, without a server."""

    async def key(self, key_id: str) -> RSAPublicKey | None:
        return private_key("one").public_key() if key_id == "one" else None


def checked(token: bytes) -> Refusal | None:
    options = PushIdentityOptions(audience=AUDIENCE, service_account_email=ACCOUNT)
    identity = PushIdentity(options, _OneKey(SigningKeysOptions()), lambda: NOW)
    return asyncio.run(identity.check([(b"authorization", b"Bearer " + token)]))


@given(anything)
@example(b"e30.e30.AAAA")  # {} in both
@example(segment(b'{"alg": "RS256", "kid": null}') + b".e30.AAAA")
@example(segment(b'{"alg": "RS256", "kid": "one", "b64": false}') + b"..AAAA")
@example(segment(b'{"x": ' + b"[" * 6_000) + b".e30.AAAA")
def test_anything_that_google_did_not_sign_is_refused_and_raises_nothing(token: bytes) -> None:
    refusal = checked(token)
    assert refusal is not None
    assert refusal.status == 401


GOOD = signed(claims(NOW))


@given(st.integers(0, len(GOOD) - 1), st.binary(min_size=0, max_size=2))
def test_a_token_with_any_byte_exchanged_is_refused(position: int, other: bytes) -> None:
    changed = GOOD[:position] + other + GOOD[position + 1 :]
    # Some bits of a part's last character have no meaning, so another character may give the same signature.
    if changed != GOOD and position != len(GOOD) - 1:
        assert checked(changed) is not None
    assert checked(GOOD) is None


@given(
    st.lists(st.tuples(st.sampled_from([b"authorization", b"host", b"x"]), anything | anything.map(b"Bearer ".__add__)))
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
def test_arbitrary_bytes_decode_to_no_keys(body: bytes) -> None:
    assert decode_keys(body) == {}
