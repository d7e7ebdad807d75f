"""The six bands of priority: whose capacity a request uses, and how long it may wait.

The poller's lanes and the `aimd` gate's windows are both in this order; 0 goes first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from handlers.gates.gate import CLASSIFICATION

RESERVED: Final = "reserved"
OVERFLOW: Final = "overflow"
INTERACTIVE: Final = "interactive"
TIERS: Final = (INTERACTIVE, "async", "batch")
TIER: Final = "tier"
"""The label that says the tier, unless a gate names another."""

BANDS: Final = tuple(f"{whose}-{tier}" for whose in (RESERVED, OVERFLOW) for tier in TIERS)
"""`reserved-interactive` to `overflow-batch`; the index is the band's number."""


def band_of(labels: Mapping[str, str], tier_label: str = TIER) -> int:
    """The band of a request: an unknown tier is batch, anything but `reserved` is overflow."""
    tier = labels.get(tier_label, "")
    rank = TIERS.index(tier) if tier in TIERS else len(TIERS) - 1
    return rank if labels.get(CLASSIFICATION) == RESERVED else rank + len(TIERS)
