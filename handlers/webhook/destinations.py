"""The operator's list of receivers that requests may name for their results.

Each receiver has its own secrets, because anyone who can verify a signature can also create one. The name in a request
is compared with the list and never parsed as a URL. Connections go to public addresses only.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import httpx

from handlers.contract.errors import InvalidSetting
from handlers.contract.masked_text import shown_value
from handlers.forward.route import is_safe_path

METADATA_FIELD: Final = "webhook_url"
"""Metadata field of a request that names its receiver."""

_ALLOWED = re.compile(r"(?P<host>[a-z0-9.-]{1,253}(:[0-9]{1,5})?)(?P<path>/[A-Za-z0-9._~/-]{1,255})")
_NAMED = re.compile(r"(?P<scheme>https?)://(?P<host>[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?)(?P<path>/[^?#\s]*)")


class DestinationRefused(Exception):
    """A request names a receiver that is not on the list. The message does not repeat it."""


@dataclass(frozen=True, slots=True, repr=False)
class Destination:
    """An entry of the list: `host[:port]`, a path, and its keys.

    A path that ends in `/` includes all paths below it.
    """

    host: str
    path: str
    keys: Sequence[bytes]

    @property
    def place(self) -> str:
        return f"{self.host}{self.path}"


@dataclass(frozen=True, slots=True, repr=False)
class WebhookTarget:
    """The receiver of a result, and the keys that sign it."""

    url: str
    keys: Sequence[bytes]


def read_destination(text: str, keys: Sequence[bytes], setting: str) -> Destination:
    """Parse a receiver, `host/path` or `host/path/`. Raises `InvalidSetting`."""
    match = _ALLOWED.fullmatch(text)
    if match is None:
        accepted = "host/path, or host/path/ for all below it"
        raise InvalidSetting(setting, found=shown_value(text), accepted=accepted)
    return Destination(match["host"], match["path"], keys)


def webhook_target_of(
    metadata: Mapping[str, str], destinations: Sequence[Destination], *, allow_private: bool
) -> tuple[str, WebhookTarget] | None:
    """The list's entry and the receiver that a request names, or None.

    Raises `DestinationRefused`.
    """
    named = metadata.get(METADATA_FIELD, "")
    if not named:
        return None
    match = _NAMED.fullmatch(named)
    if match is not None and (match["scheme"] == "https" or allow_private):
        host = match["host"].lower()
        for one in destinations:
            if one.host == host and is_safe_path(match["path"], [one.path]):
                return one.place, WebhookTarget(f"{match['scheme']}://{host}{match['path']}", one.keys)
    raise DestinationRefused(
        f"metadata.{METADATA_FIELD}: expected a URL https://host/path on the operator's list, got one that is not"
    )


_GLOBAL_UNICAST: Final = ipaddress.ip_network("2000::/3")
_ASIDE: Final = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "168.63.129.16/32",  # Azure's internal service for virtual machines, on a public address
        "192.88.99.0/24",  # relays of 6to4 (RFC 7526), which lead to any IPv4 address
        # IANA's special-purpose registry of IPv4; the interpreter's own table differs between releases.
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",
    )
)


_ASIDE_6: Final = tuple(
    ipaddress.IPv6Network(text)
    for text in (
        "2001::/23",  # IETF protocol assignments, Teredo among them
        "2001:db8::/32",  # documentation
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation (RFC 9637)
        "5f00::/16",  # segment routing
    )
)
_EMBEDDED: Final = (
    (ipaddress.IPv6Network("::ffff:0:0/96"), 0),  # mapped
    (ipaddress.IPv6Network("64:ff9b::/96"), 0),  # NAT64 (RFC 6052)
    (ipaddress.IPv6Network("64:ff9b:1::/48"), 0),  # NAT64 of local use (RFC 8215), in its /96 form
    (ipaddress.IPv6Network("2002::/16"), 80),  # 6to4 (RFC 3056)
)
"""Networks whose addresses embed an IPv4 address, with the number of bits after it."""


def is_public(address: str) -> bool:
    """Whether a literal address is public. Raises `ValueError` for other text.

    Only global unicast IPv6 (RFC 4291, 2.4) counts as public. For an address that embeds an IPv4 address (mapped,
    NAT64, 6to4), the IPv4 address decides.
    """
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv4Address):
        return not any(found in network for network in _ASIDE)
    for network, behind in _EMBEDDED:
        if found in network:
            return is_public(str(ipaddress.IPv4Address(int(found) >> behind & 0xFFFFFFFF)))
    return found in _GLOBAL_UNICAST and not any(found in network for network in _ASIDE_6)


def is_public_host(host: str) -> bool:
    """Whether a host may be public: False for private addresses.

    A name is checked when it is resolved. A name of digits and dots only (`2130706433`, `127.1`, also in digits of
    other scripts) is an old notation of an address, to which systems connect without a resolver. It never counts as
    public.
    """
    try:
        host = httpx.URL(scheme="https", host=host).raw_host.decode("ascii")  # the transport reads it like this
    except (httpx.InvalidURL, ValueError):
        return False
    try:
        return is_public(host)
    except ValueError:
        return bool(host) and not host.replace(".", "").isdigit()


def check_public(host: str, addresses: Sequence[str]) -> None:
    """Raise `OSError` unless all addresses are public."""
    if not addresses or not all(_is_outside(one) for one in addresses):
        raise OSError(None, f"{host} is not a public host")


def _is_outside(address: str) -> bool:
    try:
        return is_public(address.partition("%")[0])
    except ValueError:
        return False
