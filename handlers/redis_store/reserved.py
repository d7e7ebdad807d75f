"""Names of keys that hold something else than results: a request that names one must not turn it into a list."""

from __future__ import annotations

import re
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
    "{async-processor:",
    "{async-processor}:",
)
_DELIVERY = re.compile(r"delivery:[0-9]+:")
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
        "result-claimed",
        "result-claim-owners",
        "result-claims-idx",
        "result-ack-tombstones",
    }
)
"""What follows the last colon of the keys beside a queue or a result list."""


def is_reserved(key: str) -> bool:
    """Whether `key` is one of those that requests, claims, gates and readers are kept under."""
    _, colon, kind = key.rpartition(":")
    if key in _NAMES or key.startswith(_PREFIXES) or _DELIVERY.match(key):
        return True
    return bool(colon) and kind in _KINDS
