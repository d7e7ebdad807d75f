"""Names of keys that hold something else than results: a request that names one must not turn it into a list."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_PREFIXES: Final = (
    "request-active:",
    "request-cancel:",
    "request-payload:",
    "request-seq:",
    "request-sent:",
    "request-stands:",
    "request-submitted:",
    "result-payload:",
    "delivery-cancel:",
    "quota:",
    "{quota:",
    "{async-processor",
    "dispatch-gate-budget:",
)
_DELIVERY = re.compile(r"delivery:[0-9]+:")
_SETTLED = re.compile(r":settled:(?:n?ack)-[0-9a-f]{40}\Z")
_NAMES: Final = frozenset({"request-cancellations", "dispatch-gate-budget"})
_KINDS: Final = frozenset(
    {
        "claimed",
        "claim-owners",
        "claims-idx",
        "deaths",
        "dead",
        "outbox",
        "outbox-idx",
        "delivered",
        "held",
        "result-claimed",
        "result-claim-owners",
        "result-claims-idx",
        "result-ack-tombstones",
    }
)
"""What follows the last colon of the keys beside a queue or a result list."""


@dataclass(frozen=True, slots=True)
class ReservedNames:
    """Keys that are no result list: ours by their form, and those that this process's settings name.

    `keys` are the queues, the retry set and what gates read or write; `prefixes` are the beginnings of keys whose end
    a request chooses, such as a quota's.
    """

    keys: frozenset[str] = frozenset()
    prefixes: tuple[str, ...] = ()

    def has(self, name: str) -> bool:
        """Whether a request that names `name` as its result list would turn another key into a list."""
        untagged = name.removeprefix("{")  # a cluster's hash tag around another key's name
        return is_reserved(name) or name in self.keys or untagged.startswith(self.prefixes)


def is_reserved(key: str) -> bool:
    """Whether `key` is one of those that requests, claims, gates and readers are kept under."""
    _, colon, kind = key.rpartition(":")
    if key in _NAMES or key.startswith(_PREFIXES) or _DELIVERY.match(key) or _SETTLED.search(key):
        return True
    return bool(colon) and kind in _KINDS
