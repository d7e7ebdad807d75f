"""The transport: a pool of connections per origin, for one event loop; how they are opened.

Requests to gateways and handlers use `post`; `handle_async_request` makes it a transport of httpx for everything else.
Proxies are never used, even if the environment sets one; redirects are not followed, and cookies are not kept.

If a reused connection ends before the first byte of a response, the request may be sent a second time, at once and on a
new connection. That happens only if the method is safe (such as GET), or if the server cannot have processed the
request because it closed the connection before its TCP acknowledged any byte.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import math
import os
import socket
import ssl
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Final, NamedTuple, TypeVar

import httpx
import msgspec

from handlers.transport.connection import AskForRoom, Connection, Outgoing, Response
from handlers.transport.decoding import decoded
from handlers.transport.failures import ConnectionLost, NameNotResolved, TlsFailed


class Origin(NamedTuple):
    """The key by which connections are pooled."""

    scheme: str
    host: str
    port: int


_PROBING: Final = (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 3))
"""Keepalive: a vanished peer is detected after 15 + 3 * 15 seconds, also while we wait for its response."""

_USER_TIMEOUT_MS: Final = 60_000
"""Time limit for a peer to acknowledge our data (`TCP_USER_TIMEOUT`, Linux)."""

AddressInfo = tuple[Any, ...]
"""An address as `getaddrinfo` returns it: family, kind, protocol, name, address."""
CheckAddresses = Callable[[str, Sequence[str]], None]
"""Called with a host and its addresses; raises `OSError` if a connection to them is forbidden."""

ProtocolT = TypeVar("ProtocolT", bound=asyncio.Protocol)


class Dialer:
    """Opens connections on one event loop.

    Addresses are cached for `dns_seconds` (0: not at all).
    """

    def __init__(
        self,
        ssl_context: ssl.SSLContext | None,
        dns_seconds: float,
        check_addresses: CheckAddresses | None,
    ) -> None:
        self._ssl_context = ssl_context
        self._dns_seconds = dns_seconds
        self._check_addresses = check_addresses
        self._known: dict[tuple[str, int], tuple[float, list[AddressInfo]]] = {}
        self._resolving: dict[tuple[str, int], asyncio.Task[list[AddressInfo]]] = {}

    async def connect(
        self, origin: Origin, seconds: float, protocol: Callable[[socket.socket], ProtocolT]
    ) -> ProtocolT:
        """Connect within `seconds`. `protocol` is called with the connected socket.

        Raises `NameNotResolved`, `TlsFailed`, `httpx.ConnectError`, or `httpx.ConnectTimeout`.
        """
        try:
            async with asyncio.timeout(seconds):
                return await self._connect(origin, seconds, protocol)
        except TimeoutError:
            raise httpx.ConnectTimeout(f"not connected in {seconds:.3g} s") from None
        except (ssl.SSLError, ssl.CertificateError) as error:
            raise TlsFailed(str(error)[:200]) from None
        except socket.gaierror as error:
            raise NameNotResolved(error.strerror or "the name does not resolve") from None
        except OSError as error:
            # asyncio's own text is "Connect call failed (address)", for any reason.
            reason = os.strerror(error.errno) if error.errno else error.strerror or str(error)
            raise httpx.ConnectError(reason or type(error).__name__) from None

    async def _connect(
        self, origin: Origin, seconds: float, protocol: Callable[[socket.socket], ProtocolT]
    ) -> ProtocolT:
        loop = asyncio.get_running_loop()
        addresses = await self._addresses(origin.host, origin.port)
        if self._check_addresses is not None:
            self._check_addresses(origin.host, [str(address[4][0]) for address in addresses])
        sock = await self._connected(addresses, loop.time() + seconds)
        tls: dict[str, Any] = {}
        if origin.scheme == "https":
            tls = {"ssl": self._tls(), "server_hostname": origin.host, "ssl_handshake_timeout": seconds}
        try:
            _, made = await loop.create_connection(lambda: protocol(sock), sock=sock, **tls)
        except BaseException:
            # This ends the connection at once; its transport closes the socket later. If the socket were closed here,
            # the next socket would get its number while the loop still watches it.
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            raise
        return made

    async def _connected(self, addresses: list[AddressInfo], until: float) -> socket.socket:
        """A socket to the first address that accepts.

        Each address gets an equal share of the remaining time.
        """
        loop = asyncio.get_running_loop()
        failure: OSError = OSError(None, "the name has no address")
        for index, (family, kind, protocol, _, address) in enumerate(list(addresses)):
            sock = socket.socket(family, kind, protocol)
            try:
                sock.setblocking(False)
                _set_options(sock)
                share = (until - loop.time()) / (len(addresses) - index)
                async with asyncio.timeout(share):
                    await loop.sock_connect(sock, address)
            except OSError as error:  # a timeout is an OSError
                sock.close()
                failure = error
                continue
            except BaseException:
                sock.close()
                raise
            if index:
                addresses.sort(key=lambda one: one[4] != address)  # try the working address first next time
            return sock
        try:
            raise failure
        finally:
            del failure  # its traceback holds this frame: a cycle

    async def _addresses(self, host: str, port: int) -> list[AddressInfo]:
        with contextlib.suppress(socket.gaierror):  # a literal address needs neither a resolver nor a thread
            return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        loop = asyncio.get_running_loop()
        key = (host, port)
        known = self._known.get(key)
        if known is not None and loop.time() < known[0]:
            return known[1]
        resolving = self._resolving.get(key)
        if resolving is None:
            resolving = loop.create_task(self._resolved(host, port), name="resolve a name")
            self._resolving[key] = resolving
            resolving.add_done_callback(lambda done: self._forget(key, done))
        return await asyncio.shield(resolving)

    async def _resolved(self, host: str, port: int) -> list[AddressInfo]:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        self._known = {one: entry for one, entry in self._known.items() if loop.time() < entry[0]}
        if self._dns_seconds > 0:
            self._known[(host, port)] = (loop.time() + self._dns_seconds, found)
        return found

    def _forget(self, key: tuple[str, int], done: asyncio.Task[list[AddressInfo]]) -> None:
        del self._resolving[key]
        if not done.cancelled():
            done.exception()  # each waiter gets the error; if all were cancelled, it must be retrieved here

    def _tls(self) -> ssl.SSLContext:
        if self._ssl_context is None:
            self._ssl_context = ssl.create_default_context()
        return self._ssl_context


def _set_options(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (*_PROBING, ("TCP_USER_TIMEOUT", _USER_TIMEOUT_MS)):
        option = getattr(socket, name, None)  # each platform has only some of them
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


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
            raise TimeoutError("the request timed out")
        limit = self._options.max_response_bytes
        try:
            connection = await self._dialer.connect(
                origin,
                min(left, self._options.connect_seconds),
                lambda sock: Connection(sock, limit, self._keep, self._forget),
            )
        except httpx.ConnectTimeout:
            if left <= self._options.connect_seconds:
                raise TimeoutError("the request timed out") from None
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
        raise httpx.LocalProtocolError("the URL is invalid") from None
    origin = origin_of(parsed)
    fixed = f"host: {parsed.netloc.decode('ascii')}\r\n"
    if parsed.userinfo:
        token = base64.b64encode(f"{parsed.username}:{parsed.password}".encode()).decode()
        fixed += f"authorization: Basic {token}\r\n"
    return Target(origin, f" {parsed.raw_path.decode('ascii')} HTTP/1.1\r\n", fixed)


def origin_of(url: httpx.URL) -> Origin:
    """Scheme, host and port. Raises `httpx.UnsupportedProtocol` unless it is http or https with a host."""
    if url.scheme not in _PORTS:
        raise httpx.UnsupportedProtocol(f"expected http:// or https://, got {url.scheme[:16]!r}")
    if not url.host:
        raise httpx.UnsupportedProtocol(f"expected a host after {url.scheme}://, got nothing")
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
        raise httpx.LocalProtocolError("a header contains a line break")
    return text.encode(encoding)
