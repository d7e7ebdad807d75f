"""Keeps a webhook outside: which addresses are public, and connections to no others.

A name is judged by what it resolves to when a connection is opened, and that connection goes to no other address:
however a host was written or resolved, nothing inside is reached.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Final

import httpx

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
        host = httpx.URL(scheme="https", host=host).raw_host.decode("ascii")  # as the transport reads it
    except (httpx.InvalidURL, ValueError):
        return False
    try:
        return is_public(host)
    except ValueError:
        return bool(host) and not host.replace(".", "").isdigit()


def check_public(host: str, addresses: Sequence[str]) -> None:
    """Raises `OSError` unless all addresses are public: a name that has an inner one too is refused whole."""
    if not addresses or not all(_is_outside(one) for one in addresses):
        raise OSError(None, f"{host} is not a public host")


def _is_outside(address: str) -> bool:
    try:
        return is_public(address.partition("%")[0])
    except ValueError:
        return False
