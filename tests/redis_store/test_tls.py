"""TLS to a real server that wants a client certificate: verified, never plain, and a password that rotates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from msgspec.structs import replace
from redis.exceptions import RedisError

from handlers.demo.servers import free_port
from handlers.redis_store.connection import STORE_FAILURES, RedisOptions, connect
from tests.servers.certificates import self_signed
from tests.servers.presence import program_path
from tests.servers.redis_topologies import Server


@dataclass(frozen=True)
class Guarded:
    """A server, and its port for TLS."""

    server: Server
    tls_port: int


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return self_signed(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def guarded(certificate: Path) -> Iterator[Guarded]:
    """Its plain port is for the test's own administration."""
    program = program_path("redis-server")
    tls = {"tls-cert-file": certificate, "tls-key-file": certificate, "tls-ca-cert-file": certificate}
    port = free_port()
    options = [part for name, path in tls.items() for part in (f"--{name}", str(path))]
    server = Server(program, "--tls-port", str(port), *options)
    yield Guarded(server, port)
    server.stop()


def _options(server: Guarded, certificate: Path, host: str = "127.0.0.1") -> RedisOptions:
    pem = str(certificate)
    return RedisOptions(f"rediss://{host}:{server.tls_port}", ca_file=pem, cert_file=pem, key_file=pem)


async def _ping(options: RedisOptions) -> bool:
    redis = connect(options)
    try:
        return bool(await redis.ping())
    finally:
        await redis.aclose()


async def test_a_client_certificate_and_the_right_ca_open_the_door(
    guarded: Guarded, certificate: Path
) -> None:
    assert await _ping(_options(guarded, certificate))


@pytest.mark.parametrize("wrong", ["no ca", "no client certificate", "another name", "plain"])
async def test_certificates_that_cannot_be_verified_are_refused(
    guarded: Guarded, certificate: Path, wrong: str
) -> None:
    good = _options(guarded, certificate)
    options = {
        "no ca": replace(good, ca_file=""),
        "no client certificate": replace(good, cert_file="", key_file=""),
        "another name": _options(guarded, certificate, host="localhost"),
        "plain": replace(good, url=good.url.replace("rediss", "redis")),
    }[wrong]
    with pytest.raises(STORE_FAILURES):
        await _ping(options)


async def test_a_password_from_a_file_may_rotate(guarded: Guarded, certificate: Path, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    with guarded.server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "poller", "on", ">first", "~*", "+@all")
        options = replace(_options(guarded, certificate), username="poller", password=secret.read_text)
        secret.write_text("first")
        assert await _ping(options)
        admin.execute_command("ACL", "SETUSER", "poller", "resetpass", ">second")
        with pytest.raises(RedisError):
            await _ping(options)
        secret.write_text("second")
        assert await _ping(options)


async def test_user_and_password_of_a_url_are_percent_decoded(guarded: Guarded) -> None:
    with guarded.server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "a:b", "on", ">p@ss/word", "~*", "+@all")
    assert await _ping(RedisOptions(f"redis://a%3Ab:p%40ss%2Fword@127.0.0.1:{guarded.server.port}/1"))
