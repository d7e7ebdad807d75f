"""Access to a gateway that authenticates us: client certificate, server name, token from a file."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509

from handlers.contract.errors import InvalidSetting
from handlers.forward.gateway import Gateway
from handlers.forward.outcome import FAILURES
from handlers.settings.settings import load_settings
from handlers.wiring.forward_stack import gateway_of
from tests.servers.certificates import self_signed, serving
from tests.servers.raw_http import RawHttp, answer, running_raw_http


@asynccontextmanager
async def gateway(**variables: str) -> AsyncIterator[Gateway]:
    opened = gateway_of(
        load_settings({"IGW_BASE_URL": "https://127.0.0.1:1", "CONNECT_TIMEOUT_SECONDS": "60", **variables})
    )
    yield opened
    await opened.aclose()


@pytest.fixture
async def asking(tmp_path: Path) -> AsyncIterator[tuple[RawHttp, Path, Path]]:
    """A server that accepts one client certificate; yields it and the client's."""
    own, client = self_signed(tmp_path), self_signed(tmp_path, "127.0.0.2")
    tls = serving(own)
    tls.verify_mode = ssl.CERT_REQUIRED
    tls.load_verify_locations(client)
    async with running_raw_http(tls) as running:
        running.reply(answer(200, b"{}"))
        yield running, own, client


async def test_a_client_certificate_opens_a_gateway_that_asks_for_one(
    asking: tuple[RawHttp, Path, Path],
) -> None:
    server, own, client = asking
    async with gateway(GATEWAY_CA_FILE=str(own), GATEWAY_CERT_FILE=str(client)) as opened:
        assert (await opened.send(f"{server.url}/v1/x", {}, b"{}")).status_code == 200


async def test_a_missing_or_wrong_client_certificate_is_refused(
    asking: tuple[RawHttp, Path, Path], tmp_path: Path
) -> None:
    server, own, _ = asking
    other = self_signed(tmp_path, "127.0.0.3")
    for variables in ({}, {"GATEWAY_CERT_FILE": str(other)}):
        async with gateway(GATEWAY_CA_FILE=str(own), **variables) as opened:
            with pytest.raises(FAILURES):
                await opened.send(f"{server.url}/v1/x", {}, b"{}")
    assert server.received == []


async def test_the_gateways_name_is_asked_for_and_checked(tmp_path: Path) -> None:
    own = self_signed(tmp_path)
    names: list[str | None] = []
    tls = serving(own)
    tls.sni_callback = lambda _socket, name, _context: names.append(name)
    async with running_raw_http(tls) as server, gateway(GATEWAY_CA_FILE=str(own)) as opened:
        with pytest.raises(FAILURES):  # the certificate is for the address, not for the name
            await opened.send(f"https://localhost:{server.port}/v1/x", {}, b"{}")
    assert names == ["localhost"]
    assert server.received == []


async def test_a_token_from_a_file_is_sent_and_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token, now = tmp_path / "token", [100.0]
    token.write_text("first-token-of-the-gateway\n")
    monkeypatch.setattr("handlers.wiring.credentials.time.monotonic", lambda: now[0])
    async with running_raw_http() as server, gateway(GATEWAY_TOKEN_FILE=str(token)) as opened:
        server.reply(answer(200))
        await opened.send(f"{server.url}/v1/x", {}, b"{}")
        token.write_text("second-token-of-the-gateway\n")
        now[0] += 60
        await opened.send(f"{server.url}/v1/x", {}, b"{}")
    found = [one.header("authorization") for one in server.received]
    assert found == ["Bearer first-token-of-the-gateway", "Bearer second-token-of-the-gateway"]


@pytest.mark.parametrize("name", ["GATEWAY_CA_FILE", "GATEWAY_CERT_FILE"])
def test_an_invalid_certificate_file_stops_the_start(tmp_path: Path, name: str) -> None:
    (tmp_path / "x").write_text("no certificate")
    with pytest.raises(InvalidSetting, match=name):
        gateway_of(load_settings({"IGW_BASE_URL": "https://g", name: str(tmp_path / "x")}))


def test_the_tests_own_certificates_are_for_addresses(tmp_path: Path) -> None:
    certificate = x509.load_pem_x509_certificate(self_signed(tmp_path).read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.IPAddress) == [ip_address("127.0.0.1")]


@pytest.mark.parametrize(
    ("setting", "others"),
    [
        ("IGW_BASE_URL", {"GATEWAY_TOKEN_FILE": "/run/token"}),
        ("IGW_BASE_URL", {"ALLOW_REQUEST_AUTHORIZATION": "true"}),
        ("HANDLER_URL", {"DISPATCH_TOKEN": "another-token-of-32-characters-00"}),
    ],
)
def test_two_credentials_for_one_header_stop_the_start(setting: str, others: dict[str, str]) -> None:
    with pytest.raises(InvalidSetting, match=f"^{setting}.*user or password.*{next(iter(others))}") as caught:
        load_settings({setting: "http://us:pw@gateway", **others})
    assert "pw@" not in str(caught.value)
    load_settings({setting: "http://us:pw@gateway"})
