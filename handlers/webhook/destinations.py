"""Receivers that requests may name for their results: the operator's list.

Each receiver has its own secrets, because anyone who can verify a signature can also create one. The name in a
request is compared as a whole and never parsed as a URL.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from handlers.contract.errors import InvalidSetting
from handlers.forward.route import is_safe_path

METADATA_FIELD: Final = "webhook_url"
"""Metadata field of a request that names its receiver."""

_ALLOWED = re.compile(r"(?P<host>[a-z0-9.-]{1,253}(:[0-9]{1,5})?)(?P<path>/[A-Za-z0-9._~/-]{1,255})")
_NAMED = re.compile(r"(?P<scheme>https?)://(?P<host>[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?)(?P<path>/[^?#\s]*)")


class DestinationRefused(Exception):
    """A request names a receiver that is not on the list; the message does not repeat it."""


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
        """Identifies the entry on the list."""
        return f"{self.host}{self.path}"


@dataclass(frozen=True, slots=True, repr=False)
class WebhookTarget:
    """Receiver of one result and the keys that sign it."""

    url: str
    keys: Sequence[bytes]


def read_destination(text: str, keys: Sequence[bytes], setting: str) -> Destination:
    """Parse a receiver, `host/path` or `host/path/`. Raises `InvalidSetting`."""
    match = _ALLOWED.fullmatch(text)
    if match is None:
        accepted = "host/path, or host/path/ for all below it"
        raise InvalidSetting(setting, found=repr(text), accepted=accepted)
    return Destination(match["host"], match["path"], keys)


def webhook_target_of(
    metadata: Mapping[str, str], destinations: Sequence[Destination], *, allow_private: bool
) -> tuple[str, WebhookTarget] | None:
    """The entry and the receiver that a request names; None if it names none.

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
        f"metadata.{METADATA_FIELD}: expected https://host/path of the operator's list, got a receiver that is "
        "not allowed"
    )
