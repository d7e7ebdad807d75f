"""Host names under which the page may be requested.

Another site can point its own name at this machine (DNS rebinding), and its scripts could then read this page. The
browser still sends that name in `Host`, so unknown names are refused. A literal address cannot be rebound, so every
address is accepted if the page listens on all.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from handlers.contract.errors import InvalidSetting

_LOOPBACK: Final = "localhost"
_HEADER = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[^\[\]:/@\s]+)(:[0-9]{1,5})?")
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*")


@dataclass(frozen=True, slots=True)
class OwnHosts:
    """The names and addresses of one page: loopback, its listening address, and the operator's."""

    listens_on: str
    names: frozenset[str] = frozenset()

    def has(self, header: str) -> bool:
        """Whether a `Host` header, with or without a port, is accepted."""
        match = _HEADER.fullmatch(header.strip())
        if match is None:
            return False
        name = _plain(match["name"])
        if name in self.names or name in (_LOOPBACK, _plain(self.listens_on)):
            return True
        address = _address(name)
        if address is None:
            return name.endswith(f".{_LOOPBACK}")  # RFC 6761, 6.3: never resolved by a name server
        own = _address(_plain(self.listens_on))
        return address.is_loopback or (own is not None and (own.is_unspecified or own == address))


def read_hosts(texts: Iterable[str], setting: str) -> frozenset[str]:
    """Parse host names or addresses without a port. Raises `InvalidSetting`."""
    names = [_plain(text.strip()) for text in texts if text.strip()]
    for name in names:
        if _address(name) is None and not _NAME.fullmatch(name):
            accepted = "names or addresses without a port, with commas between"
            raise InvalidSetting(setting, found=repr(name), accepted=accepted)
    return frozenset(names)


def _plain(name: str) -> str:
    return name.lower().removeprefix("[").removesuffix("]").removesuffix(".")


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
