"""The transport: a pool of connections per origin, for one event loop.

Requests to gateways and handlers use `post`; `handle_async_request` makes it a transport of httpx for everything else.
Proxies are never used, even if the environment sets one; redirects are not followed, and cookies are not kept.

If a reused connection ends before the first byte of a response, the request may be sent a second time, at once and on a
new connection. That happens only if the method is safe (such as GET), or if the server cannot have processed the
request because it closed the connection before its TCP acknowledged any byte.
"""

from __future__ import annotations

import asyncio
import base64
import math
import ssl
from collections import deque
from collections.abc import Iterable, Mapping
from functools import lru_cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Final, NamedTuple

import httpx
import msgspec

from handlers.transport.connection import AskForRoom, Connection, Outgoing, Response
from handlers.transport.decoding import decoded
from handlers.transport.dialing import CheckAddresses, Dialer, Origin
from handlers.transport.failures import ConnectionLost

_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_OF_THE_CODED_BODY: Final = frozenset({b"content-encoding", b"content-length", b"transfer-encoding"})
HEAD_ONLY: Final = "head_only"
"""Extension of an httpx request: only the response's headers are awaited."""


class TransportOptions(msgspec.Struct, frozen=True):
    """Limits of a transport.

    `max_response_bytes` bounds a body, both as received and decoded. Unused connections close after `idle_seconds`, or
    before the limit in the server's `Keep-Alive: timeout=…` if that is shorter. Addresses are cached for `dns_seconds`.
    `check_addresses` may refuse the addresses of a host.
    """

    connect_seconds: float = 10.0
    idle_seconds: float = 4.0
    max_response_bytes: int = 10_000_000
    ssl_context: ssl.SSLContext | None = None
    dns_seconds: float = 10.0
    check_addresses: CheckAddresses | None = None


class Transport(httpx.AsyncBaseTransport):
    """Connections to any number of origins. Callers limit their number."""

    def __init__(self, options: TransportOptions) -> None:
        self._options = options
        self._dialer = Dialer(options.ssl_context, options.dns_seconds, options.check_addresses)
        self._idle: dict[Origin, deque[Connection]] = {}
        self._open: dict[Connection, Origin] = {}
        self._sweeping: asyncio.TimerHandle | None = None

    async def post(
        self,
        url: str,
        headers: Mapping[str, str],
        body: bytes,
        until: float = math.inf,
        ask_for_room: AskForRoom | None = None,
    ) -> Response:
        """POST and read the whole response.

        `headers` have names in lower case, without host and content-length. At `until` (event loop's clock) nothing
        more is sent and `TimeoutError` is raised. A large response is read once `ask_for_room` gives room. Raises one
        of httpx's transport errors, or `UnusableResponse`.
        """
        target = target_of(url)
        request = Outgoing(post_head(target, headers, len(body)), body, until, ask_for_room)
        return await self._exchange(target.origin, request)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request of httpx. Its own timeouts are not used."""
        body = await request.aread()
        outgoing = Outgoing(
            request_head(request),
            body,
            may_repeat=request.method in _SAFE_METHODS,
            wants_head=bool(request.extensions.get(HEAD_ONLY)) or request.method == "HEAD",
        )
        response = await self._exchange(origin_of(request.url), outgoing)
        headers = [header for header in response.headers if header[0] not in _OF_THE_CODED_BODY]
        return httpx.Response(response.status_code, headers=headers, stream=httpx.ByteStream(response.body))

    async def _exchange(self, origin: Origin, request: Outgoing) -> Response:
        connection = self._pooled(origin)
        response = None
        if connection is not None:
            try:
                response = await connection.exchange(request)
            except ConnectionLost as error:
                if not error.may_resend:
                    raise
        if response is None:
            connection = await self._connected(origin, request.until)
            response = await connection.exchange(request)
        return response._replace(body=b"") if request.wants_head else self._decoded(response)

    def _decoded(self, response: Response) -> Response:
        codings = [value for name, value in response.headers if name == b"content-encoding"]
        if not codings:
            return response
        encoding, limit = b",".join(codings).decode("latin-1"), self._options.max_response_bytes
        return response._replace(body=decoded(response.body, encoding, limit, response.status_code))

    def _pooled(self, origin: Origin) -> Connection | None:
        """The most recently used connection that is still usable."""
        idle = self._idle.get(origin)
        now = asyncio.get_running_loop().time()
        while idle:
            connection = idle.pop()
            if now < connection.idle_until and connection.is_usable():
                return connection
            connection.abort()
        return None

    async def _connected(self, origin: Origin, until: float) -> Connection:
        left = until - asyncio.get_running_loop().time()
        if left <= 0:
            raise TimeoutError("the time for the request is over")
        limit = self._options.max_response_bytes
        try:
            connection = await self._dialer.connect(
                origin,
                min(left, self._options.connect_seconds),
                lambda sock: Connection(sock, limit, self._keep, self._forget),
            )
        except httpx.ConnectTimeout:
            if left <= self._options.connect_seconds:
                raise TimeoutError("the time for the request is over") from None
            raise
        if connection.is_open:
            self._open[connection] = origin
        return connection

    def _keep(self, connection: Connection) -> None:
        """Keep a connection for reuse after a complete exchange."""
        loop = asyncio.get_running_loop()
        seconds = min(self._options.idle_seconds, connection.keep_alive_seconds)
        connection.idle_until = loop.time() + seconds
        origin = self._open[connection]
        idle = self._idle.get(origin)
        if idle is None:
            idle = self._idle[origin] = deque()
        idle.append(connection)
        if self._sweeping is None:
            self._sweeping = loop.call_at(connection.idle_until, self._sweep)

    def _sweep(self) -> None:
        """Close connections past their idle limit and schedule the next sweep."""
        loop = asyncio.get_running_loop()
        self._sweeping = None
        now, first = loop.time(), math.inf
        for origin, idle in list(self._idle.items()):
            while idle and idle[0].idle_until <= now:
                idle.popleft().abort()
            if idle:
                first = min(first, idle[0].idle_until)
            else:
                del self._idle[origin]
        if first < math.inf:
            self._sweeping = loop.call_at(first, self._sweep)

    def _forget(self, connection: Connection) -> None:
        self._open.pop(connection, None)  # if it is in the pool, it is skipped there and swept later

    async def aclose(self) -> None:
        """Close all connections; running exchanges fail."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        for connection in list(self._open):
            connection.abort()
        self._idle.clear()


def http_client(options: TransportOptions) -> httpx.AsyncClient:
    """An httpx client with its own `Transport`, without cookies and proxies."""
    return httpx.AsyncClient(
        transport=Transport(options),
        headers={"accept-encoding": "identity"},
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        timeout=None,  # noqa: S113  # each caller has its own time limit
        trust_env=False,
    )


_PORTS: Final = {"http": 80, "https": 443}


class Target(NamedTuple):
    """A parsed URL: origin, request line without method, fixed headers."""

    origin: Origin
    line: str
    fixed: str


@lru_cache(maxsize=1_024)
def target_of(url: str) -> Target:
    """The parsed URL; cached, since there are few.

    A user and a password in it become `Authorization: Basic`. Raises `httpx.UnsupportedProtocol` or
    `httpx.LocalProtocolError` for a URL that cannot be called.
    """
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):  # the original text may contain a password, so it is not repeated
        raise httpx.LocalProtocolError("the URL cannot be read") from None
    origin = origin_of(parsed)
    fixed = f"host: {parsed.netloc.decode('ascii')}\r\n"
    if parsed.userinfo:
        token = base64.b64encode(f"{parsed.username}:{parsed.password}".encode()).decode()
        fixed += f"authorization: Basic {token}\r\n"
    return Target(origin, f" {parsed.raw_path.decode('ascii')} HTTP/1.1\r\n", fixed)


def origin_of(url: httpx.URL) -> Origin:
    """Scheme, host and port. Raises `httpx.UnsupportedProtocol` for anything but http and https."""
    if url.scheme not in _PORTS or not url.host:
        raise httpx.UnsupportedProtocol(f"expected http:// or https:// with a host, got {url.scheme[:16]!r}")
    return Origin(url.scheme, url.raw_host.decode("ascii"), url.port or _PORTS[url.scheme])


def post_head(target: Target, headers: Mapping[str, str], length: int) -> bytes:
    """Request line and headers of a POST.

    `length` is that of the body. Header names are in lower case. Raises `httpx.LocalProtocolError` if a header contains
    a line break.
    """
    lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
    text = f"POST{target.line}{target.fixed}{''.join(lines)}content-length: {length}\r\n\r\n"
    return _encoded(text, 4 + len(headers) + ("authorization" in target.fixed))


def request_head(request: httpx.Request) -> bytes:
    """Request line and headers of an httpx request."""
    raw: Iterable[tuple[bytes, bytes]] = request.headers.raw
    lines = [f"{request.method} {request.url.raw_path.decode('ascii')} HTTP/1.1\r\n"]
    lines += [f"{name.decode('latin-1')}: {value.decode('latin-1')}\r\n" for name, value in raw]
    return _encoded("".join(lines) + "\r\n", len(lines) + 1, "latin-1")


def _encoded(text: str, lines: int, encoding: str = "utf-8") -> bytes:
    if text.count("\n") != lines or text.count("\r") != lines or "\0" in text:
        raise httpx.LocalProtocolError("a header holds a line break")
    return text.encode(encoding)
