"""The edge to Pub/Sub: one call of its REST API. The only module that knows HTTP, tokens and its statuses.

REST over aiohttp, since importing the vendor's gRPC client alone takes longer than the whole start of a
handler, and since its publisher runs threads. Bodies are encoded by msgspec, which writes base64 itself.

Tokens come from `gcloud.aio.auth`, which asks, in this order: the credentials file, the variables
`GOOGLE_APPLICATION_CREDENTIALS` and `CLOUDSDK_CONFIG` (these two it reads from the environment itself), the
metadata server (GKE Workload Identity, Cloud Run). It is imported at the first call, in a thread: it takes
0.1 s, and the emulator needs no token.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final, Self
from urllib.parse import quote

import aiohttp
import msgspec
from yarl import URL

from handlers.pubsub.errors import NO_ANSWER, PubSubFailed

SCOPE: Final = "https://www.googleapis.com/auth/pubsub"
_MAX_REASON_LENGTH: Final = 300
_CONNECTIONS: Final = 64
_NO_CREDENTIALS: Final = (
    "no access token: {error}; accepted are a credentials file, GOOGLE_APPLICATION_CREDENTIALS, "
    "`gcloud auth application-default login`, or a workload identity"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PubSubOptions:
    """Which Pub/Sub, and as whom.

    `emulator_host` (`host:port`) replaces Google's service and needs no credentials; `endpoint` may be a
    regional one (`https://europe-west1-pubsub.googleapis.com`); `credentials_file` empty: the platform's own.
    """

    project_id: str
    emulator_host: str = ""
    endpoint: str = "https://pubsub.googleapis.com"
    credentials_file: str = ""

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


class PubSubApi:
    """Calls Pub/Sub as `options` say. Connections are kept until `close`."""

    def __init__(self, options: PubSubOptions) -> None:
        self.options = options
        self._session: aiohttp.ClientSession | None = None
        self._token: Any = None

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
        path = quote(f"{resource}:{verb}" if verb else resource, safe="/:+~")  # names may have a %
        url = URL(self.options.root_url + path, encoded=True)
        try:
            async with asyncio.timeout(timeout_seconds):
                headers = await self._headers(session, resource)
                async with session.request(
                    method, url, data=body, headers=headers, params=parameters, allow_redirects=False
                ) as response:
                    answer = await response.read()
        except TimeoutError:
            raise PubSubFailed(
                resource, status=NO_ANSWER, reason=f"no answer in {timeout_seconds:g} s"
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            reason = f"no answer: {type(error).__name__}: {error}"
            raise PubSubFailed(resource, status=NO_ANSWER, reason=reason) from error
        if 200 <= response.status < 300:
            return answer
        raise PubSubFailed(resource, status=response.status, reason=_reason(response.status, answer))

    async def close(self) -> None:
        """Close the connections; the next call would open new ones."""
        session, self._session, self._token = self._session, None, None
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

    async def _headers(self, session: aiohttp.ClientSession, resource: str) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        if not self.options.emulator_host:
            headers["Authorization"] = f"Bearer {await self._access_token(session, resource)}"
        return headers

    async def _access_token(self, session: aiohttp.ClientSession, resource: str) -> str:
        """The account's token; kept and refreshed by the library before it ends."""
        try:
            if self._token is None:
                make_token = await asyncio.to_thread(_load_token_class)
                self._token = make_token(
                    service_file=self.options.credentials_file or None, session=session, scopes=[SCOPE]
                )
            token = await self._token.get()
        except TimeoutError:
            raise
        except Exception as error:  # the library's sources raise what their parsers raise
            reason = _NO_CREDENTIALS.format(
                error=f"{type(error).__name__}: {str(error)[:_MAX_REASON_LENGTH]}"
            )
            raise PubSubFailed(resource, status=NO_ANSWER, reason=reason) from error
        return str(token)


def _load_token_class() -> Any:
    from gcloud.aio.auth import Token  # noqa: PLC0415 - 0.1 s that the emulator and the start do not need

    return Token


def _reason(status: int, answer: bytes) -> str:
    """Pub/Sub's own words, shortened, or just the status."""
    try:
        message = _error_decoder.decode(answer).error.message
    except msgspec.MsgspecError:
        message = ""
    return f"{status} {message[:_MAX_REASON_LENGTH]}".strip()
