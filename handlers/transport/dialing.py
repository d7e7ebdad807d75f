"""Open TCP connections: resolve names, try addresses in turn, TLS, socket options."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import httpx

from handlers.transport.failures import NameNotResolved, TlsFailed


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
            # Ends the connection at once. Its transport closes the socket: closed here, the next socket would get its
            # number while the loop still watches it.
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
