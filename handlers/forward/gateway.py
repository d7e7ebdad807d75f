"""The only module that talks to the gateway: one POST, one answer, nothing retried in here.

httpx is the interface; its request goes straight to the aiohttp transport, since httpx's own connection
pool costs ten times as much under concurrency.
"""

from __future__ import annotations

import asyncio
import math
import ssl
import zlib
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from handlers.answer_room import ANSWER_ROOM, FREE_BYTES

DROPPED_REASON_HEADER: Final = "x-llm-d-request-dropped-reason"
QUEUE_DURATION_HEADER: Final = "x-llm-d-flow-queue-duration-ms"
BAND_HEADROOM_HEADER: Final = "x-llm-d-flow-band-headroom"
_GZIP_WINDOW: Final = zlib.MAX_WBITS | 32  # gzip or zlib, whichever the header says


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """How to reach gateways; `max_response_bytes` bounds a body before and after decompression.

    `token` gives the bearer token of our own, asked for each request; it goes to these gateways alone.
    """

    connect_timeout_seconds: float = 10.0
    keepalive_seconds: float = 30.0
    max_response_bytes: int = 10_000_000
    ssl_context: ssl.SSLContext | None = None
    token: Callable[[], str] | None = None


@dataclass(frozen=True, slots=True)
class GatewayResponse:
    """What came back: header names in lower case; `body` is whole and decompressed."""

    status_code: int
    headers: Mapping[str, str]
    body: bytes


SEND_UNTIL: ContextVar[float] = ContextVar("send_until", default=math.inf)
"""By when a request must be on its way, seconds of the event loop's clock; set by whoever has a time limit."""


class _TimelyRequest(aiohttp.ClientRequest):
    """Is not written where it comes too late.

    The library writes a request in a task of its own. A process that is stopped, or a loop that stalls, before that
    task begins goes on with it before it looks at its timers.
    """

    async def write_bytes(
        self,
        writer: aiohttp.abc.AbstractStreamWriter,
        conn: aiohttp.connector.Connection,
        content_length: int | None = None,
    ) -> None:
        """As the library's, which has written nothing yet, not even the headers."""
        if asyncio.get_running_loop().time() >= SEND_UNTIL.get():
            conn.close()  # whoever waits for the answer learns it from this, if no timer was first
            return
        await super().write_bytes(writer, conn, content_length)


class ResponseTooLarge(Exception):
    """The body passed the limit; reading stopped there."""


class _Post(httpx.Request):
    """A POST as the transport reads it. httpx's own would copy and normalise each header twice, which costs a
    fifth of a request; ours are in order already, and host and length are the transport's to set.
    """

    def __init__(
        self, url: httpx.URL, headers: Mapping[str, str], body: bytes, extensions: dict[str, Any]
    ) -> None:
        self.method = "POST"
        self.url = url
        self.headers = headers  # type: ignore[assignment]  # the transport hands them on as they are
        self.extensions = extensions
        self._content = body


class Gateway:
    """Connections to all gateways of this process; opened on first use, closed by `aclose`."""

    def __init__(self, options: GatewayOptions) -> None:
        self._options = options
        self._transport: AiohttpTransport | None = None
        self.in_use = 0
        """Calls under way, which is connections in use: each has one of its own."""
        self._extensions = {"timeout": {"connect": options.connect_timeout_seconds}}

    async def send(self, url: str, headers: Mapping[str, str], body: bytes) -> GatewayResponse:
        """POST `body` and read the whole answer. No timeout but for the connection: the caller has one.

        Raises one of `handlers.forward.classify.FAILURES`, or `ResponseTooLarge`.
        """
        if self._options.token is not None:
            headers = {**headers, "authorization": f"Bearer {self._options.token()}"}
        request = _Post(parsed_url(url), headers, body, self._extensions)
        self.in_use += 1
        try:
            return await self._answer(request)
        finally:
            self.in_use -= 1

    async def _answer(self, request: httpx.Request) -> GatewayResponse:
        response = await self._connected().handle_async_request(request)
        received = plain_headers(response)
        try:
            content = await self._read(response, received)
        finally:
            await response.aclose()
        return GatewayResponse(response.status_code, received, content)

    async def get(self, url: str, headers: Mapping[str, str] | None = None) -> GatewayResponse:
        """GET a small page of the gateway (its models, its health); for checks, not for requests."""
        return await self._answer(
            httpx.Request("GET", parsed_url(url), headers=headers, extensions=self._extensions)
        )

    def _connected(self) -> AiohttpTransport:
        if self._transport is None:
            self._transport = AiohttpTransport(
                verify=self._options.ssl_context or False, client=self._open_session, trust_env=False
            )
        return self._transport

    def _open_session(self) -> aiohttp.ClientSession:
        """No limit on connections: how many requests are in flight is decided before they get here."""
        connector = aiohttp.TCPConnector(
            limit=0,
            keepalive_timeout=self._options.keepalive_seconds,
            ssl=self._options.ssl_context or True,
            ttl_dns_cache=10,
        )
        return aiohttp.ClientSession(
            connector=connector,
            request_class=_TimelyRequest,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
            trust_env=False,
        )

    async def _read(self, response: httpx.Response, headers: Mapping[str, str]) -> bytes:
        limit = self._options.max_response_bytes
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > limit:
            raise ResponseTooLarge
        ask = ANSWER_ROOM.get()
        chunks: list[bytes] = []
        size = 0
        async for chunk in response.stream:  # type: ignore[union-attr]  # the transport's streams are asynchronous
            size += len(chunk)
            if size > limit:
                raise ResponseTooLarge
            chunks.append(chunk)
            if ask is not None and size > FREE_BYTES:
                room, ask_now, ask = asyncio.Event(), ask, None
                is_plain = length.isdigit() and "content-encoding" not in headers
                if not ask_now(int(length) if is_plain else limit, room.set):
                    await room.wait()
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        return decompressed(body, headers.get("content-encoding", ""), limit)

    async def aclose(self) -> None:
        """Close all connections."""
        if self._transport is not None:
            await self._transport.aclose()


def plain_headers(response: httpx.Response) -> dict[str, str]:
    """A response's headers by name in lower case, the last of equal ones: read once, looked up often."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers.raw}


@lru_cache(maxsize=1_024)
def parsed_url(url: str) -> httpx.URL:
    """Parsing costs more than sending; there are few paths."""
    return httpx.URL(url)


def decompressed(body: bytes, encoding: str, limit: int) -> bytes:
    """The body without its content encoding, never more than `limit` bytes of it.

    We ask for `identity`, so this is for gateways that do not listen. Raises `ResponseTooLarge` for a
    bomb, `httpx.DecodingError` for anything that is not what it says.
    """
    if encoding.lower() in ("", "identity"):
        return body
    if encoding.lower() not in ("gzip", "x-gzip", "deflate"):
        raise httpx.DecodingError(f"content-encoding {encoding[:32]!r} was not asked for")
    inflater = zlib.decompressobj(_GZIP_WINDOW)
    try:
        content = inflater.decompress(body, limit + 1)
    except zlib.error as error:
        raise httpx.DecodingError("the body is not what its content-encoding says") from error
    if len(content) > limit:
        raise ResponseTooLarge
    if not inflater.eof:
        raise httpx.DecodingError("the compressed body ends too early")
    return content
