"""Tokens from google-auth, asked of a token server of ours with a key of ours."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from handlers.pubsub.access_token import AccessToken, NoAccessToken
from handlers.pubsub.api import PubSubApi, PubSubOptions
from handlers.pubsub.errors import PublishFailed
from handlers.pubsub.publisher import Publisher


class TokenServer:
    """Google's token endpoint: counts the calls; `expires_in` and `status` are the tests' to set."""

    def __init__(self) -> None:
        self.calls = 0
        self.expires_in = 3600
        self.status = 200
        self.arrived = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.url = ""

    async def answer(self, _request: web.Request) -> web.Response:
        self.calls += 1
        self.arrived.set()
        await self.gate.wait()
        body = {"access_token": f"token-{self.calls}", "expires_in": self.expires_in, "token_type": "Bearer"}
        return web.json_response(body if self.status == 200 else {"error": "no"}, status=self.status)


@pytest.fixture
async def server() -> AsyncIterator[TokenServer]:
    server = TokenServer()
    application = web.Application()
    application.router.add_post("/token", server.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = "http://{}:{}/token".format(*runner.addresses[0][:2])
    yield server
    await runner.cleanup()


@pytest.fixture
def token(server: TokenServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AccessToken:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = tmp_path / "key.json"
    account = {
        "type": "service_account",
        "client_email": "publisher@p.iam.gserviceaccount.com",
        "private_key": key.decode(),
        "private_key_id": "1",
        "token_uri": server.url,
    }
    file.write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    return AccessToken()


async def test_one_token_serves_all_callers_until_it_ends(server: TokenServer, token: AccessToken) -> None:
    assert set(await asyncio.gather(*(token.get() for _ in range(20)))) == {"token-1"}
    assert await token.get() == "token-1"
    assert server.calls == 1


async def test_a_token_near_its_end_is_renewed_and_used_while_renewing_fails(
    server: TokenServer, token: AccessToken
) -> None:
    server.expires_in = 200
    assert await token.get() == "token-1"
    assert await token.get() == "token-2"
    server.status = 401
    assert await token.get() == "token-2"


async def test_a_caller_that_gives_up_does_not_take_the_token_from_the_others(
    server: TokenServer, token: AccessToken
) -> None:
    server.gate.clear()
    impatient, patient = (asyncio.ensure_future(token.get()) for _ in range(2))
    await server.arrived.wait()
    impatient.cancel()
    server.gate.set()
    assert await patient == "token-1"
    assert server.calls == 1


async def test_no_token_says_what_is_accepted_and_shows_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "key.json"
    file.write_text('{"type": "service_account", "private_key": "VERYSECRET"}')
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    with pytest.raises(NoAccessToken, match="application-default login") as raised:
        await AccessToken().get()
    assert "VERYSECRET" not in str(raised.value)


async def test_a_publish_without_a_token_fails_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "missing.json"))
    options = PubSubOptions(project_id="proj", endpoint="http://127.0.0.1:9")
    async with PubSubApi(options) as api, Publisher(api) as publisher:
        with pytest.raises(PublishFailed, match="no access token"):
            await publisher.publish("results", b"x", timeout_seconds=1.0)
