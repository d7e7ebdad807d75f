"""Google's keys are available when a delivery comes: cached, refreshed, rotated, kept in an outage."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from handlers.contract.errors import InvalidSetting
from handlers.doors.auth.google_keys import (
    KeysUnavailable,
    SigningKeys,
    SigningKeysOptions,
    decode_keys,
    fresh_seconds,
)
from tests.doors.auth.token_issuer import (
    KeyServer,
    certificates,
    jwk_set,
    key_server,
    private_key,
    public_pems,
)
from tests.waiting import wait_until_async

HOUR = 3_600.0


class Clock:
    """Seconds, moved by the test."""

    now = 1_000.0

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
async def keys(server: KeyServer, clock: Clock) -> AsyncIterator[SigningKeys]:
    keys = SigningKeys(SigningKeysOptions(server.url, timeout_seconds=60.0), clock)
    yield keys
    await keys.close()


def is_key_one(key: RSAPublicKey | None) -> bool:
    return key is not None and key.public_numbers() == private_key("one").public_key().public_numbers()


@pytest.mark.parametrize(
    "body", [certificates("one"), public_pems("one"), jwk_set("one")], ids=["certificates", "PEM", "JWK set"]
)
async def test_every_form_of_publication_is_read(keys: SigningKeys, server: KeyServer, body: bytes) -> None:
    server.body = body
    assert is_key_one(await keys.key("one"))


async def test_fresh_keys_are_not_fetched_again(keys: SigningKeys, server: KeyServer, clock: Clock) -> None:
    await keys.key("one")
    clock.now += HOUR - 1
    await keys.key("one")
    assert server.asked == 1


async def test_stale_keys_are_used_while_new_keys_are_fetched(
    keys: SigningKeys, server: KeyServer, clock: Clock
) -> None:
    await keys.key("one")
    clock.now += HOUR
    server.open.clear()
    assert is_key_one(await keys.key("one")), "not delayed by a fetch that hangs"
    server.body = certificates("one", "two")
    server.open.set()
    await wait_until_async(lambda: keys.key("two"), "the new key")


async def test_an_outage_is_bridged_and_ends_by_itself(keys: SigningKeys, server: KeyServer, clock: Clock) -> None:
    await keys.key("one")
    server.status = 503
    clock.now += HOUR + 6 * HOUR - 1
    assert is_key_one(await keys.key("one"))
    await wait_until_async(lambda: server.asked == 2, "the fetch that fails")
    clock.now += 10
    with pytest.raises(KeysUnavailable, match="status 503"):
        await keys.key("one")
    server.status = 200
    clock.now += 10
    assert is_key_one(await keys.key("one"))


async def test_an_unavailable_key_server_is_called_once_in_ten_seconds(
    keys: SigningKeys, server: KeyServer, clock: Clock
) -> None:
    server.status = 500
    for _ in range(50):
        with pytest.raises(KeysUnavailable):
            await keys.key("one")
    assert server.asked == 1
    clock.now += 10
    with pytest.raises(KeysUnavailable):
        await keys.key("one")
    assert server.asked == 2


async def test_an_outage_logs_one_line_a_minute(
    keys: SigningKeys, server: KeyServer, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Callers with tokens of unknown keys cause the fetches."""
    server.status = 500
    for _ in range(12):
        with pytest.raises(KeysUnavailable):
            await keys.key("one")
        clock.now += 10
    assert server.asked == 12
    assert [record.getMessage() for record in caplog.records] == ["signing keys not fetched"] * 2


async def test_a_rotation_is_noticed_by_the_unknown_key(keys: SigningKeys, server: KeyServer, clock: Clock) -> None:
    await keys.key("one")
    server.body = certificates("two")
    clock.now += 10
    assert await keys.key("two") is not None
    assert await keys.key("one") is None, "withdrawn"


async def test_unknown_key_ids_cause_few_fetches(keys: SigningKeys, server: KeyServer, clock: Clock) -> None:
    await keys.key("one")
    for number in range(100):
        assert await keys.key(f"forged-{number}") is None
    assert server.asked == 1
    clock.now += 10
    assert await keys.key("forged") is None
    assert server.asked == 2


async def test_an_unknown_key_during_an_outage_may_be_a_new_one(
    keys: SigningKeys, server: KeyServer, clock: Clock
) -> None:
    """Its delivery must be redelivered, not refused."""
    await keys.key("one")
    server.status = 500
    clock.now += 10
    with pytest.raises(KeysUnavailable):
        await keys.key("two")
    assert is_key_one(await keys.key("one"))


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b""),
        (200, b"{}"),
        (200, b"[]"),
        (200, b'{"keys": []}'),
        (200, b'{"one": "no certificate"}'),
        (200, b'{"one": 1}'),
        (200, b'{"keys": [{"kid": "one", "kty": "RSA", "n": "!", "e": "AQAB"}]}'),
        (200, b'{"keys": [{"kid": "one", "kty": "RSA", "n": "AQAB", "e": ""}]}'),
        (200, b"\xff" * 100),
        (200, b'{"one": ' + b"[" * 100_000),
        (200, b" " * 300_000 + certificates("one")),
        (200, certificates("weak")),
        (204, b""),
        (404, certificates("one")),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_response_without_a_usable_key_counts_as_an_outage(
    keys: SigningKeys, server: KeyServer, status: int, body: bytes
) -> None:
    server.status, server.body = status, body
    with pytest.raises(KeysUnavailable):
        await keys.key("one")


async def test_a_redirect_is_not_followed(keys: SigningKeys, server: KeyServer) -> None:
    server.status, server.headers = 302, {"Location": server.url}
    with pytest.raises(KeysUnavailable, match="status 302"):
        await keys.key("one")
    assert server.asked == 1


async def test_an_unreachable_server_counts_as_an_outage(clock: Clock) -> None:
    keys = SigningKeys(SigningKeysOptions("http://127.0.0.1:1/certs"), clock)
    with pytest.raises(KeysUnavailable, match="ConnectError"):
        await keys.key("one")


async def test_a_caller_that_disconnects_does_not_end_the_fetch(keys: SigningKeys, server: KeyServer) -> None:
    server.open.clear()
    first, second = (asyncio.create_task(keys.key("one")) for _ in range(2))
    await wait_until_async(lambda: server.asked == 1, "the fetch")
    first.cancel()
    server.open.set()
    assert is_key_one(await second)
    assert server.asked == 1


async def test_keys_fetched_at_the_start_are_not_fetched_again(keys: SigningKeys, server: KeyServer) -> None:
    keys.start()
    await wait_until_async(lambda: server.asked == 1, "the fetch")
    assert is_key_one(await keys.key("one"))
    assert server.asked == 1


async def test_closing_ends_a_fetch_that_hangs(server: KeyServer, clock: Clock) -> None:
    server.open.clear()
    keys = SigningKeys(SigningKeysOptions(server.url, timeout_seconds=60.0), clock)
    keys.start()
    await wait_until_async(lambda: server.asked == 1, "the fetch")
    async with asyncio.timeout(60):
        await keys.close()


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 3_600),
        ({"Cache-Control": "no-store"}, 3_600),
        ({"Cache-Control": "public, max-age=19845, must-revalidate"}, 19_845),
        ({"Cache-Control": "max-age=19845", "Age": "845"}, 19_000),
        ({"Cache-Control": "max-age=19845", "Age": "x"}, 19_845),
        ({"Cache-Control": "s-max-age=7"}, 3_600),
        ({"Cache-Control": "max-age=0"}, 60),
        ({"Cache-Control": "max-age=100", "Age": "200"}, 60),
        ({"Cache-Control": "max-age=999999999"}, 86_400),
        ({"Cache-Control": "max-age=9999999999999"}, 86_400),
    ],
)
def test_freshness_follows_the_server_within_bounds(headers: dict[str, str], seconds: float) -> None:
    assert fresh_seconds(headers) == seconds


def test_an_invalid_key_does_not_discard_the_others() -> None:
    body = certificates("one")[:-1] + b', "odd": "-----BEGIN CERTIFICATE-----"}'
    assert set(decode_keys(body)) == {"one"}


@pytest.mark.parametrize("url", ["", "certs", "http://www.googleapis.com/certs", "ftp://127.0.0.1/", "https:///x"])
def test_keys_are_fetched_over_tls_or_from_loopback_only(url: str) -> None:
    with pytest.raises(InvalidSetting, match="https"):
        SigningKeysOptions(url)
