"""TLS to a real server that wants a client certificate: verified, never plain, and a password that rotates."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from redis.exceptions import RedisError

from handlers.demo.servers import free_port
from handlers.demo.valkey import find_valkey
from handlers.redis_store.connection import STORE_FAILURES, RedisOptions, connect
from handlers.redis_store.faults import explained
from tests.servers.certificates import self_signed
from tests.servers.presence import program_path, redis_program
from tests.servers.redis_topologies import Server
from tests.servers.valkey import long_limits

WRONG = ("no ca", "no client certificate", "another name", "plain")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return self_signed(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def guarded(certificate: Path) -> Iterator[Server]:
    """`port` accepts TLS only; its own port is for the test's own administration."""
    server = Server(redis_program(), tls=certificate)
    yield server
    server.stop()


def _options(port: int, certificate: Path, wrong: str = "") -> RedisOptions:
    pem = str(certificate)
    good = replace(long_limits(f"rediss://127.0.0.1:{port}"), ca_file=pem, cert_file=pem, key_file=pem)
    return {
        "": good,
        "no ca": replace(good, ca_file=""),
        "no client certificate": replace(good, cert_file="", key_file=""),
        "another name": replace(good, url=f"rediss://localhost:{port}"),
        "plain": replace(good, url=f"redis://127.0.0.1:{port}"),
    }[wrong]


async def _ping(options: RedisOptions) -> bool:
    redis = connect(options)
    try:
        return bool(await redis.ping())
    finally:
        await redis.aclose()


async def test_a_client_certificate_and_the_right_ca_are_accepted(guarded: Server, certificate: Path) -> None:
    assert await _ping(_options(guarded.port, certificate))


@pytest.mark.parametrize("wrong", WRONG)
async def test_certificates_that_cannot_be_verified_are_refused(guarded: Server, certificate: Path, wrong: str) -> None:
    with pytest.raises(STORE_FAILURES):
        await _ping(_options(guarded.port, certificate, wrong))


async def test_a_redis_server_with_tls_is_checked_in_the_same_way(certificate: Path) -> None:
    program, port = program_path("redis-server"), free_port()
    files = [part for kind in ("cert", "key", "ca-cert") for part in (f"--tls-{kind}-file", str(certificate))]
    server = Server(program, "--tls-port", str(port), *files)
    try:
        assert await _ping(_options(port, certificate))
        for wrong in WRONG:
            with pytest.raises(STORE_FAILURES):
                await _ping(_options(port, certificate, wrong))
    finally:
        server.stop()


async def test_a_password_from_a_file_may_rotate(guarded: Server, certificate: Path, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    with guarded.client() as admin:
        admin.execute_command("ACL", "SETUSER", "poller", "on", ">first", "~*", "+@all")
        options = replace(_options(guarded.port, certificate), username="poller", password=secret.read_text)
        secret.write_text("first")
        assert await _ping(options)
        admin.execute_command("ACL", "SETUSER", "poller", "resetpass", ">second")
        with pytest.raises(RedisError):
            await _ping(options)
        secret.write_text("second")
        assert await _ping(options)


async def test_user_and_password_of_a_url_are_percent_decoded(guarded: Server) -> None:
    with guarded.client() as admin:
        admin.execute_command("ACL", "SETUSER", "a:b", "on", ">p@ss/word", "~*", "+@all")
    assert await _ping(long_limits(f"redis://a%3Ab:p%40ss%2Fword@127.0.0.1:{guarded.own_port}/1"))


NO_TLS = "the server does not speak TLS: the URL must begin with redis, not rediss, or its port is wrong"


@pytest.mark.parametrize("scheme", ["rediss", "rediss+cluster", "rediss+sentinel"])
@pytest.mark.parametrize("has_password", [False, True])
async def test_tls_to_a_server_without_it_is_named(scheme: str, has_password: bool) -> None:
    server = Server(find_valkey(), *(["--requirepass", "p"] if has_password else []))
    path = "/mymaster" if "sentinel" in scheme else ""
    url = f"{scheme}://127.0.0.1:{server.port}{path}"
    redis = connect(RedisOptions(url, connect_timeout_seconds=2.0))  # the silent server is why it ends
    try:
        with pytest.raises(STORE_FAILURES) as failure:
            await redis.ping()
        assert NO_TLS in explained(failure.value)
    finally:
        await redis.aclose()
        server.stop()


async def test_tls_to_a_server_of_another_protocol_is_named() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        redis = connect(long_limits(f"rediss://127.0.0.1:{server.sockets[0].getsockname()[1]}"))
        with pytest.raises(STORE_FAILURES) as failure:
            await redis.ping()
        await redis.aclose()
    assert explained(failure.value) == NO_TLS
