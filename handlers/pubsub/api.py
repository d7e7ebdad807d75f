"""The edge to Pub/Sub: one call of its REST API. The only module that knows HTTP, tokens and its statuses.

REST over aiohttp, since importing the vendor's gRPC client alone takes longer than the whole start of a
handler, and since its publisher runs threads. Bodies are encoded by msgspec, which writes base64 itself.
"""

from __future__ import annotations

import asyncio
import io
from dataclasses import dataclass
from typing import Final, Protocol, Self
from urllib.parse import quote

import aiohttp
import msgspec
from yarl import URL

from handlers.pubsub.access_token import AccessToken, NoAccessToken
from handlers.pubsub.errors import NO_ANSWER, PubSubFailed

_MAX_REASON_LENGTH: Final = 300
_CONNECTIONS: Final = 64
_STREAMED_BYTES: Final = 2**20
"""aiohttp wants larger bodies as a stream, so that writing them does not hold up the loop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PubSubOptions:
    """Which Pub/Sub, and as whom.

    `emulator_host` (`host:port`) replaces Google's service and needs no credentials; `endpoint` may be a
    regional one (`https://europe-west1-pubsub.googleapis.com`).
    """

    project_id: str
    emulator_host: str = ""
    endpoint: str = "https://pubsub.googleapis.com"

    @property
    def root_url(self) -> str:
        """What the paths of resources are appended to."""
        server = f"http://{self.emulator_host}" if self.emulator_host else self.endpoint
        return f"{server.rstrip('/')}/v1/"


class _ErrorDetail(msgspec.Struct):
    message: str = ""


class _ErrorBody(msgspec.Struct):
    error: _ErrorDetail = msgspec.field(default_factory=_ErrorDetail)


_error_decoder = msgspec.json.Decoder(_ErrorBody)


class TokenSource(Protocol):
    """Where the bearer token comes from."""

    async def get(self) -> str:
        """A token that is valid now; raises `NoAccessToken`."""
        ...


class PubSubApi:
    """Calls Pub/Sub as `options` say. Connections are kept until `close`. `token`: None is Google's own."""

    def __init__(self, options: PubSubOptions, token: TokenSource | None = None) -> None:
        self.options = options
        self._session: aiohttp.ClientSession | None = None
        self._token = token or AccessToken()
        self.in_use = 0
        """Calls under way: each has a connection of its own."""

    async def call(
        self,
        method: str,
        resource: str,
        verb: str = "",
        *,
        body: bytes | None = None,
        timeout_seconds: float,
        parameters: dict[str, str] | None = None,
    ) -> bytes:
        """Call `resource` (a full name), or its custom `verb` (`publish`); returns the answer's body.

        Raises `PubSubFailed` for every answer but 2xx and for no answer within `timeout_seconds`.
        """
        session = self._open()
        data = io.BytesIO(body) if body is not None and len(body) >= _STREAMED_BYTES else body
        path = quote(f"{resource}:{verb}" if verb else resource, safe="/:+~")  # names may have a %
        url = URL(self.options.root_url + path, encoded=True)
        self.in_use += 1
        try:
            async with asyncio.timeout(timeout_seconds):
                headers = await self._headers()
                async with session.request(
                    method, url, data=data, headers=headers, params=parameters, allow_redirects=False
                ) as response:
                    answer = await response.read()
        except TimeoutError:
            raise PubSubFailed(
                resource, status=NO_ANSWER, reason=f"no answer in {timeout_seconds:g} s"
            ) from None
        except NoAccessToken as error:
            raise PubSubFailed(resource, status=NO_ANSWER, reason=str(error)) from error
        except (aiohttp.ClientError, OSError) as error:
            reason = f"no answer: {type(error).__name__}: {error}"
            raise PubSubFailed(resource, status=NO_ANSWER, reason=reason) from error
        finally:
            self.in_use -= 1
        if 200 <= response.status < 300:
            return answer
        raise PubSubFailed(resource, status=response.status, reason=_reason(response.status, answer))

    async def close(self) -> None:
        """Close the connections; the next call would open new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    def _open(self) -> aiohttp.ClientSession:
        """The session; made at the first call, since aiohttp wants a running loop."""
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=_CONNECTIONS, keepalive_timeout=60.0)
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=None),  # each call has its own limit
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=True,
            )
        return self._session

    async def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        if not self.options.emulator_host:
            headers["Authorization"] = f"Bearer {await self._token.get()}"
        return headers


def _reason(status: int, answer: bytes) -> str:
    """Pub/Sub's own words, shortened, or just the status."""
    try:
        message = _error_decoder.decode(answer).error.message
    except msgspec.MsgspecError:
        message = ""
    return f"{status} {message[:_MAX_REASON_LENGTH]}".strip()
