"""Google's public signing keys, cached and fetched again when stale.

Fresh keys are used at once. Stale keys are used while a fetch runs in the background. With older keys, callers wait for
the fetch; if it fails, `KeysUnavailable` is raised. An unknown key id also causes a fetch, since the keys may have been
rotated. Fetches are at least 10 seconds apart.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import httpx
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cryptography.x509 import InvalidVersion, load_pem_x509_certificate
from jwt import PyJWTError
from jwt.algorithms import RSAAlgorithm

from handlers.contract.errors import AsyncProcessorError, InvalidSetting
from handlers.contract.lenient_json import MALFORMED
from handlers.contract.masked_text import shown_value
from handlers.number_text import whole
from handlers.telemetry.logs import RareWarning, get_logger
from handlers.transport.failures import UnusableResponse
from handlers.transport.transport import TransportOptions, http_client

GOOGLE_CERTS_URL: Final = "https://www.googleapis.com/oauth2/v1/certs"

_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_LARGEST_BYTES: Final = 262_144
_SMALLEST_KEY_BITS: Final = 2_048
KeyT = TypeVar("KeyT")

_FRESH_SECONDS: Final = (60.0, 3_600.0, 86_400.0)  # minimum, default without a header, maximum
_RETRY_SECONDS: Final = 10.0
"""Shortest time between two fetches."""
_STALE_SECONDS: Final = 21_600.0
"""If no fetch succeeds, keys are used for so long after they have become stale."""


class KeysUnavailable(AsyncProcessorError):
    """The keys could not be fetched, and no cached keys are usable."""


class SigningKeysOptions(msgspec.Struct, frozen=True):
    """Where keys are fetched.

    `certs_url` serves `{key id: PEM certificate}` or a JWK set; plain HTTP is allowed on loopback only.
    `timeout_seconds` bounds one fetch.
    """

    certs_url: str = GOOGLE_CERTS_URL
    timeout_seconds: float = 5.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.certs_url)
        is_safe = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)
        if not parts.hostname or not is_safe:
            raise InvalidSetting("PUSH_CERTS_URL", found=shown_value(self.certs_url), accepted="an https:// URL")


class _BadAnswer(Exception):
    """An unusable response; the text describes it without quoting the server."""


class _JwkSet(msgspec.Struct):
    keys: list[dict[str, Any]]


class SigningKeys:
    """Cache of public keys by key id, for one event loop."""

    def __init__(self, options: SigningKeysOptions, clock: Callable[[], float] = time.monotonic) -> None:
        self._options = options
        self._clock = clock
        self._unfetched = RareWarning(get_logger("doors"), "signing keys not fetched", clock)
        self._keys: Mapping[str, RSAPublicKey] = {}
        self._fresh_until = self._usable_until = self._retry_at = float("-inf")
        self._failure = ""
        self._fetching: asyncio.Task[None] | None = None

    async def key(self, key_id: str) -> RSAPublicKey | None:
        """The key with that id; None if Google has no such key. Raises `KeysUnavailable`."""
        now = self._clock()
        if now >= self._fresh_until:
            self._fetch_if_due(now)
        if now >= self._usable_until:
            await self._fetched()
        elif key_id not in self._keys:
            self._fetch_if_due(now)
            await self._fetched()
        found = self._keys.get(key_id) if self._clock() < self._usable_until else None
        if found is None and self._failure:
            raise KeysUnavailable(f"signing keys could not be fetched: {self._failure}")
        return found

    def start(self) -> None:
        """Start fetching the keys before the first delivery needs them."""
        self._fetch_if_due(self._clock())

    async def close(self) -> None:
        """Cancel a running fetch."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait({self._fetching})

    async def _fetched(self) -> None:
        """Wait for the running fetch, if any. Cancelling the wait does not cancel the fetch."""
        if self._fetching is not None:
            await asyncio.wait({self._fetching})

    def _fetch_if_due(self, now: float) -> None:
        if self._fetching is None and now >= self._retry_at:
            self._fetching = asyncio.create_task(self._fetch(), name="fetch signing keys")

    async def _fetch(self) -> None:
        try:
            keys, fresh_seconds = await _download(self._options)
        except _BadAnswer as error:
            self._failed(str(error))
        except (httpx.HTTPError, OSError) as error:  # a timeout is an OSError
            self._failed(type(error).__name__)  # the error's text may quote what a server sent
        else:
            self._failure = ""
            self._keys = keys
            self._fresh_until = self._clock() + fresh_seconds
            self._usable_until = self._fresh_until + _STALE_SECONDS
        finally:
            self._retry_at = self._clock() + _RETRY_SECONDS
            self._fetching = None

    def _failed(self, failure: str) -> None:
        self._failure = failure
        self._unfetched.report(error=failure, keys_held=len(self._keys))


async def _download(options: SigningKeysOptions) -> tuple[Mapping[str, RSAPublicKey], float]:
    """The keys, and the seconds for which they are fresh. Raises `_BadAnswer` or httpx's errors."""
    client = http_client(TransportOptions(max_response_bytes=_LARGEST_BYTES))
    async with client, asyncio.timeout(options.timeout_seconds):
        try:
            response = await client.get(options.certs_url)
        except UnusableResponse as error:
            raise _BadAnswer(f"an answer that {error}") from None
    if response.status_code != 200:
        raise _BadAnswer(f"status {response.status_code}")
    keys = decode_keys(response.content)
    if not keys:
        raise _BadAnswer("no usable key")
    return keys, fresh_seconds(response.headers)


def fresh_seconds(headers: Mapping[str, str]) -> float:
    """The seconds that `Cache-Control: max-age` allows, less `Age` (RFC 9111, 4.2); bounded."""
    least, unsaid, most = _FRESH_SECONDS
    granted = re.search(r"(?:^|[,\s])max-age=(\d{1,9})", headers.get("Cache-Control", ""), re.I)
    if granted is None:
        return unsaid
    age = headers.get("Age", "")
    spent = whole(age) or 0
    return min(most, max(least, float((whole(granted[1]) or 0) - spent)))


def decode_keys(body: bytes) -> Mapping[str, RSAPublicKey]:
    """The keys in `{key id: PEM}` or a JWK set.

    Empty if malformed. Only RSA keys of at least 2,048 bits are kept, because RS256 is the only accepted algorithm.
    """
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        if "keys" in fields:
            jwks = msgspec.json.decode(body, type=_JwkSet).keys
            found = {kid: _usable(_jwk_key, key) for key in jwks if isinstance(kid := key.get("kid"), str) and kid}
        else:
            pems = {kid: msgspec.json.decode(pem, type=str) for kid, pem in fields.items()}
            found = {kid: _usable(_pem_key, pem) for kid, pem in pems.items()}
    except MALFORMED:
        return {}
    return {kid: key for kid, key in found.items() if key is not None}


def _usable(read: Callable[[KeyT], object], source: KeyT) -> RSAPublicKey | None:
    """The key that `read` returns for `source`; None if it is invalid."""
    try:
        key = read(source)
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidVersion, PyJWTError):
        return None
    return key if isinstance(key, RSAPublicKey) and key.key_size >= _SMALLEST_KEY_BITS else None


def _pem_key(pem: str) -> object:
    encoded = pem.encode()
    if b"-----BEGIN CERTIFICATE-----" in encoded:
        return load_pem_x509_certificate(encoded).public_key()
    return load_pem_public_key(encoded)


def _jwk_key(key: dict[str, Any]) -> object:
    return RSAAlgorithm.from_jwk(key)
