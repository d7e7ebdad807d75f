"""An issuer of push tokens with its own keys, and a server that publishes the public keys."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

AUDIENCE = "https://push.example.com/"
ACCOUNT = "pusher@project.iam.gserviceaccount.com"


@cache
def private_key(name: str) -> rsa.RSAPrivateKey:
    """The key of that name, created once per process; `weak` is too short."""
    return rsa.generate_private_key(65_537, 1_024 if name == "weak" else 2_048)


def segment(content: bytes) -> bytes:
    return base64.urlsafe_b64encode(content).rstrip(b"=")


def claims(now: float, **changed: Any) -> dict[str, Any]:
    """The claims of a push token; a value of None omits a claim."""
    message: dict[str, Any] = {
        "iss": "https://accounts.google.com",
        "aud": AUDIENCE,
        "sub": "113774264463038321964",
        "azp": "113774264463038321964",
        "email": ACCOUNT,
        "email_verified": True,
        "iat": int(now),
        "exp": int(now) + 3_600,
    }
    return {name: value for name, value in (message | changed).items() if value is not None}


def signed(message: dict[str, Any] | bytes, *, key: str = "one", **header: Any) -> bytes:
    """A token signed with RS256 by that key, with any header; None omits a field."""
    named: dict[str, Any] = {"alg": "RS256", "kid": key, "typ": "JWT"} | header
    head = json.dumps({name: value for name, value in named.items() if value is not None}).encode()
    body = message if isinstance(message, bytes) else json.dumps(message).encode()
    content = segment(head) + b"." + segment(body)
    signature = private_key(key).sign(content, padding.PKCS1v15(), hashes.SHA256())
    return content + b"." + segment(signature)


def signed_with_the_public_key(message: dict[str, Any]) -> bytes:
    """The classic forgery: HS256, with the published PEM as the shared secret."""
    content = segment(b'{"alg": "HS256", "kid": "one"}') + b"." + segment(json.dumps(message).encode())
    secret = certificate("one").encode()
    return content + b"." + segment(hmac.digest(secret, content, hashlib.sha256))


@cache
def certificate(name: str) -> str:
    """A self-signed PEM certificate, as Google's `oauth2/v1/certs` has them."""
    key = private_key(name)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    today = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(today).not_valid_after(today + timedelta(days=1))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def certificates(*names: str) -> bytes:
    return json.dumps({name: certificate(name) for name in names}).encode()


def public_pems(*names: str) -> bytes:
    form = PublicFormat.SubjectPublicKeyInfo
    return json.dumps(
        {name: private_key(name).public_key().public_bytes(Encoding.PEM, form).decode() for name in names}
    ).encode()


def jwk_set(*names: str) -> bytes:
    """The same keys as `oauth2/v3/certs` has them, beside one of another kind."""
    keys = []
    for name in names:
        numbers = private_key(name).public_key().public_numbers()
        modulus = numbers.n.to_bytes((numbers.n.bit_length() + 7) // 8)
        keys.append({"kid": name, "kty": "RSA", "n": segment(modulus).decode(), "e": "AQAB", "use": "sig"})
    return json.dumps({"keys": [{"kid": "elliptic", "kty": "EC", "crv": "P-256"}, *keys]}).encode()


@dataclass
class KeyServer:
    """The key server's next answers and number of calls. Clear `open` to let it hang."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"Cache-Control": "public, max-age=3600"})
    asked: int = 0
    url: str = ""
    open: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, _: web.Request) -> web.Response:
        self.asked += 1
        await self.open.wait()
        return web.Response(body=self.body, status=self.status, headers=self.headers)


@asynccontextmanager
async def key_server() -> AsyncIterator[KeyServer]:
    """A server on a free port that publishes the key `one`."""
    server = KeyServer(certificates("one"))
    server.open.set()
    app = web.Application()
    app.router.add_get("/certs", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/certs"
        yield server
    finally:
        server.open.set()
        await runner.cleanup()
