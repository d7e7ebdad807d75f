"""Keeps a webhook outside: which addresses are public, and connections to no others.

A name is judged by what it resolves to at that moment, and each socket once more by the address that it is about to
connect to: however a host was written or resolved, nothing inside is reached.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Any, Final

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import DefaultResolver
from yarl import URL

_GLOBAL_UNICAST: Final = ipaddress.ip_network("2000::/3")
_ASIDE: Final = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "168.63.129.16/32",  # Azure's own server for its machines, on a public address
        "192.88.99.0/24",  # relays of 6to4 (RFC 7526), which lead to any IPv4 address
    )
)


def is_public(address: str) -> bool:
    """Whether a literal address is public; raises `ValueError` where it is none.

    Of IPv6 only global unicast (RFC 4291, 2.4) counts, and nothing that a translator or a tunnel turns into IPv4.
    """
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return is_public(str(found.ipv4_mapped))
        if found not in _GLOBAL_UNICAST or found.sixtofour is not None or found.teredo is not None:
            return False
    elif any(found in network for network in _ASIDE):
        return False
    return found.is_global and not found.is_multicast


def is_public_host(host: str) -> bool:
    """Whether a literal address is public; a name is judged when it is resolved.

    A name of digits and dots alone (`2130706433`, `127.1`, also in digits of other scripts) is an old form of an
    address, which is connected to without asking the resolver: never public.
    """
    try:
        host = URL.build(scheme="https", host=host).raw_host or ""  # as aiohttp will read it
    except ValueError:
        return False
    try:
        return is_public(host)
    except ValueError:
        return bool(host) and not host.replace(".", "").isdigit()


class PublicOnly(AbstractResolver):
    """Resolves names to public addresses alone; a name that has an inner one too is refused whole."""

    def __init__(self, resolver: AbstractResolver | None = None) -> None:
        self._resolver = resolver or DefaultResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Raises `OSError` for a host that is not public."""
        found = await self._resolver.resolve(host, port, family)
        if not found or not all(_is_outside(one["host"]) for one in found):
            raise OSError(None, f"{host} is not a public host")
        return found

    async def close(self) -> None:
        """Close the resolver below."""
        await self._resolver.close()


def outside_socket(address: tuple[Any, ...]) -> socket.socket:
    """A socket for what `getaddrinfo` gave; the last look before it connects. Raises `OSError` for an inner address."""
    family, kind, protocol, _, place = address
    if not _is_outside(str(place[0])):
        raise OSError(None, "not a public address")
    return socket.socket(family=family, type=kind, proto=protocol)


def _is_outside(address: str) -> bool:
    try:
        return is_public(address.partition("%")[0])
    except ValueError:
        return False
