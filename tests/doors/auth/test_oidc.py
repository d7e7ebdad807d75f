"""F79: only Pub/Sub may push, with our subscription's account and audience. Tokens are really signed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Message

from handlers.contract.errors import InvalidSetting
from handlers.doors.auth.google_keys import SigningKeys, SigningKeysOptions
from handlers.doors.auth.oidc import PushIdentity, PushIdentityOptions
from handlers.doors.door import Answer, Delivery, Refusal
from handlers.doors.http_endpoint import EndpointOptions, HttpEndpoint
from tests.doors.auth.token_issuer import (
    ACCOUNT,
    AUDIENCE,
    KeyServer,
    claims,
    key_server,
    segment,
    signed,
    signed_with_the_public_key,
)
from tests.waiting import wait_until_async

NOW = 1_800_000_000.0
Headers = list[tuple[bytes, bytes]]


class Clock:
    """Unix seconds, moved by the test."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def server() -> AsyncIterator[KeyServer]:
    async with key_server() as server:
        yield server


@pytest.fixture
async def identity(server: KeyServer, clock: Clock) -> AsyncIterator[PushIdentity]:
    identity = identity_for(server.url, clock)
    yield identity
    await identity.close()


def identity_for(url: str, clock: Callable[[], float], timeout_seconds: float = 60.0) -> PushIdentity:
    options = PushIdentityOptions(audience=AUDIENCE, service_account_email=ACCOUNT)
    keys = SigningKeys(SigningKeysOptions(url, timeout_seconds=timeout_seconds), clock)
    return PushIdentity(options, keys, clock)


def bearer(token: bytes) -> Headers:
    return [(b"host", b"push.example.com"), (b"authorization", b"Bearer " + token)]


def token(**changed: Any) -> bytes:
    return signed(claims(NOW, **changed))


def parts() -> list[bytes]:
    return token().split(b".")


def last_bit_flipped() -> bytes:
    head, body, signature = parts()
    return b".".join((head, body, (b"A" if signature[:1] != b"A" else b"B") + signature[1:]))


ACCEPTED: dict[str, Callable[[], Headers]] = {
    "as Google sends it": lambda: bearer(token()),
    "issuer without scheme": lambda: bearer(token(iss="accounts.google.com")),
    "scheme in other letters": lambda: [(b"authorization", b"bEARER  " + token())],
    "issued 59 s ahead of our clock": lambda: bearer(token(iat=NOW + 59)),
    "expired for 59 s": lambda: bearer(token(exp=NOW - 59)),
    "valid from now": lambda: bearer(token(nbf=NOW)),
    "fractions of seconds": lambda: bearer(token(iat=NOW - 0.5, exp=NOW + 0.5)),
}

REFUSED: dict[str, tuple[int, Callable[[], Headers]]] = {
    "no header": (401, list),
    "empty header": (401, lambda: [(b"authorization", b"")]),
    "no token": (401, lambda: [(b"authorization", b"Bearer ")]),
    "another scheme": (401, lambda: [(b"authorization", b"Basic " + token())]),
    "scheme glued to the token": (401, lambda: [(b"authorization", b"Bearer" + token())]),
    "token in a header of another name": (401, lambda: [(b"x-authorization", b"Bearer " + token())]),
    "two headers, both good": (401, lambda: bearer(token()) + bearer(token())),
    "two headers, the second forged by an attribute": (401, lambda: bearer(token()) + bearer(b"forged")),
    "two tokens in one header": (401, lambda: bearer(token() + b"," + token())),
    "alg none, no signature": (
        401,
        lambda: bearer(segment(b'{"alg":"none","kid":"one"}') + b"." + parts()[1] + b"."),
    ),
    "alg none, signature kept": (401, lambda: bearer(signed(claims(NOW), alg="none"))),
    "alg in other letters": (401, lambda: bearer(signed(claims(NOW), alg="rs256"))),
    "HS256 with the public key as secret": (401, lambda: bearer(signed_with_the_public_key(claims(NOW)))),
    "RS512 in the header": (401, lambda: bearer(signed(claims(NOW), alg="RS512"))),
    "no alg": (401, lambda: bearer(signed(claims(NOW), alg=None))),
    "critical extension": (401, lambda: bearer(signed(claims(NOW), crit=["exp"]))),
    "signed with another key, our key's id": (401, lambda: bearer(signed(claims(NOW), key="two", kid="one"))),
    "unknown key id": (401, lambda: bearer(signed(claims(NOW), key="two"))),
    "no key id": (401, lambda: bearer(signed(claims(NOW), kid=None))),
    "empty key id": (401, lambda: bearer(signed(claims(NOW), kid=""))),
    "key id of another type": (401, lambda: bearer(signed(claims(NOW), kid=["one"]))),
    "key in the header itself": (401, lambda: bearer(signed(claims(NOW), key="two", jwk={"kty": "RSA"}))),
    "expired for 61 s": (401, lambda: bearer(token(exp=NOW - 61))),
    "issued 61 s ahead of our clock": (401, lambda: bearer(token(iat=NOW + 61))),
    "not valid before 61 s from now": (401, lambda: bearer(token(nbf=NOW + 61))),
    "no expiry": (401, lambda: bearer(token(exp=None))),
    "no time of issue": (401, lambda: bearer(token(iat=None))),
    "expiry as text": (401, lambda: bearer(token(exp=str(NOW + 60)))),
    "another audience": (401, lambda: bearer(token(aud="https://other.example.com/"))),
    "audience in other letters": (401, lambda: bearer(token(aud=AUDIENCE.upper()))),
    "audience with a suffix": (401, lambda: bearer(token(aud=AUDIENCE + "x"))),
    "audience as a list": (401, lambda: bearer(token(aud=[AUDIENCE]))),
    "no audience": (401, lambda: bearer(token(aud=None))),
    "another issuer": (401, lambda: bearer(token(iss="https://accounts.google.com.evil.example"))),
    "no issuer": (401, lambda: bearer(token(iss=None))),
    "another account": (403, lambda: bearer(token(email="other@project.iam.gserviceaccount.com"))),
    "account in other letters": (403, lambda: bearer(token(email=ACCOUNT.upper()))),
    "no e-mail": (403, lambda: bearer(token(email=None))),
    "e-mail not verified": (403, lambda: bearer(token(email_verified=False))),
    "e-mail verification missing": (403, lambda: bearer(token(email_verified=None))),
    "e-mail verified as text": (401, lambda: bearer(token(email_verified="true"))),
    "a token for another of our services": (
        401,
        lambda: bearer(token(aud="https://other.run.app", email="b@c")),
    ),
    "cut off": (401, lambda: bearer(token()[:-1])),
    "without its signature": (401, lambda: bearer(b".".join(parts()[:2]))),
    "four parts": (401, lambda: bearer(token() + b".AAAA")),
    "claims exchanged": (
        401,
        lambda: bearer(b".".join((parts()[0], segment(b'{"email":"root@evil"}'), parts()[2]))),
    ),
    "signature changed": (401, lambda: bearer(last_bit_flipped())),
    "padded base64": (401, lambda: bearer(token() + b"==")),
    "standard base64": (401, lambda: bearer(token().replace(b"-", b"+").replace(b"_", b"/") + b"/")),
    "spaces inside": (401, lambda: bearer(token().replace(b".", b" .", 1))),
    "no JSON in the header": (401, lambda: bearer(b".".join((segment(b"{"), *parts()[1:])))),
    "nested header": (401, lambda: bearer(b".".join((segment(b'{"x":' + b"[" * 5_000), *parts()[1:])))),
    "claims that are not an object": (401, lambda: bearer(signed(b"[]"))),
    "claims that are not UTF-8": (401, lambda: bearer(signed(b'{"iss":"\xff"}'))),
    "1 MB": (401, lambda: bearer(b"A" * 1_000_000)),
    "no ASCII": (401, lambda: bearer("é.é.é".encode())),
    "NUL": (401, lambda: bearer(b"\0" + token())),
}


@pytest.mark.parametrize("case", ACCEPTED)
async def test_a_token_of_our_subscription_is_accepted(identity: PushIdentity, case: str) -> None:
    assert await identity.check(ACCEPTED[case]()) is None


@pytest.mark.parametrize("case", REFUSED)
async def test_f79_anything_else_is_refused(identity: PushIdentity, case: str) -> None:
    status, headers = REFUSED[case]
    for _ in range(2):  # the second time from what was learnt
        refusal = await identity.check(headers())
        assert refusal is not None
        assert refusal.status == status, refusal


async def test_a_refusal_repeats_nothing_of_the_token(identity: PushIdentity) -> None:
    for _, headers in REFUSED.values():
        refusal = await identity.check(headers())
        assert refusal is not None
        assert len(refusal.reason) < 60
        assert "@" not in refusal.reason and "example" not in refusal.reason


async def test_a_token_is_verified_once_and_then_known_by_its_digest(identity: PushIdentity, server: KeyServer) -> None:
    good = bearer(token())
    assert await identity.check(good) is None
    server.status = 500
    assert [await identity.check(good) for _ in range(3)] == [None] * 3
    assert server.asked == 1


async def test_a_known_token_is_refused_once_it_has_expired(identity: PushIdentity, clock: Clock) -> None:
    good = bearer(token(exp=NOW + 100))
    assert await identity.check(good) is None
    clock.now = NOW + 159
    assert await identity.check(good) is None
    clock.now = NOW + 161
    assert await identity.check(good) == Refusal(401, "token expired")


async def test_a_long_lived_token_is_verified_again_every_hour(
    identity: PushIdentity, server: KeyServer, clock: Clock
) -> None:
    """A key that Google has withdrawn must not stay valid until the token expires."""
    good = bearer(token(exp=NOW + 315_360_000))
    assert await identity.check(good) is None
    server.body = server.body.replace(b'"one"', b'"withdrawn"')
    clock.now = NOW + 3_601
    assert await identity.check(good) is None, "stale keys are used while new ones are fetched"
    await wait_until_async(lambda: server.asked == 2, "the fetch")

    async def refused_an_hour_later() -> Refusal | None:
        clock.now += 3_601  # the fetched keys may not have been read yet
        return await identity.check(good)

    refusal = await wait_until_async(refused_an_hour_later, "the new keys")
    assert refusal is not None
    assert refusal.status == 401


class CountedKeys(SigningKeys):
    """Counts the tokens that are verified: a remembered one needs no key."""

    verified = 0

    async def key(self, kid: str) -> Any:
        self.verified += 1
        return await super().key(kid)


async def test_a_bounded_number_of_verified_tokens_is_remembered(server: KeyServer, clock: Clock) -> None:
    keys = CountedKeys(SigningKeysOptions(server.url), clock)
    options = PushIdentityOptions(audience=AUDIENCE, service_account_email=ACCOUNT, most_remembered=3)
    identity = PushIdentity(options, keys, clock)
    oldest, *newer = (bearer(token(sub=f"{number}")) for number in range(4))
    for each in (oldest, *newer, *newer):
        assert await identity.check(each) is None
    assert keys.verified == 4
    assert await identity.check(oldest) is None
    assert keys.verified == 5, "the oldest was forgotten"
    await identity.close()


async def test_without_keys_every_caller_gets_503(server: KeyServer, clock: Clock) -> None:
    server.status = 500
    identity = identity_for(server.url, clock)
    assert await identity.check(bearer(token())) == Refusal(503, "signing keys could not be fetched: status 500")
    await identity.close()


async def test_a_key_server_that_hangs_is_cut_off(server: KeyServer, clock: Clock) -> None:
    server.open.clear()
    identity = identity_for(server.url, clock, timeout_seconds=0.05)
    refusal = await identity.check(bearer(token()))
    assert refusal is not None
    assert refusal.status == 503
    await identity.close()


async def test_a_thousand_first_deliveries_fetch_the_keys_once(identity: PushIdentity, server: KeyServer) -> None:
    server.open.clear()
    deliveries = [asyncio.create_task(identity.check(bearer(token(sub=str(n))))) for n in range(1_000)]
    await asyncio.sleep(0)
    server.open.set()
    assert set(await asyncio.gather(*deliveries)) == {None}
    assert server.asked == 1


@pytest.mark.parametrize(
    ("given", "setting"),
    [
        ({"service_account_email": ACCOUNT}, "PUSH_AUDIENCE"),
        ({"audience": AUDIENCE}, "PUSH_SERVICE_ACCOUNT"),
        ({"audience": AUDIENCE, "service_account_email": "pusher"}, "PUSH_SERVICE_ACCOUNT"),
    ],
)
def test_no_audience_or_account_stops_the_start(given: dict[str, Any], setting: str) -> None:
    with pytest.raises(InvalidSetting, match="PUSH_AUTH=none") as error:
        PushIdentityOptions(**given)
    assert error.value.setting == setting


async def test_f79_a_refused_push_is_neither_read_nor_forwarded(identity: PushIdentity) -> None:
    refusals: list[object] = []

    async def walk(_: Delivery) -> Answer:
        raise AssertionError("a refused delivery was walked")

    async def receive() -> Message:
        raise AssertionError("the body of a refused delivery was read")

    endpoint = HttpEndpoint(walk, identity, {}, refusals.append, EndpointOptions(1_000, 1.0))
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/",
        "query_string": b"access_token=" + token(),
        "headers": bearer(b"forged"),
    }
    response = await endpoint.respond(Request(scope, receive))
    assert (response.status_code, response.body) == (401, b"unauthorized\n")
    assert refusals == [Refusal(401, "malformed token")]


async def test_a_known_token_costs_less_than_verifying_it(identity: PushIdentity) -> None:
    """The hot path is a hash and a look-up; only the order is claimed, the machine is shared."""
    known = bearer(token())
    assert await identity.check(known) is None

    async def best_of(rounds: list[Headers]) -> float:
        spent = []
        for headers in rounds:
            started = time.perf_counter()
            await identity.check(headers)
            spent.append(time.perf_counter() - started)
        return min(spent)

    fresh = [bearer(token(sub=str(n))) for n in range(20)]
    assert await best_of([known] * 20) < await best_of(fresh)
