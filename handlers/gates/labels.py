"""Labels that give a request's priority: classification, tier, and their band.

The poller's lanes and the windows of the `aimd` gate follow the order of `BANDS`: band 0 goes first.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

import msgspec

from handlers.contract.request import Request

CLASSIFICATION: Final = "classification"
"""Label for whose capacity a request uses: `reserved` or `overflow`; quota gates set it."""
RESERVED: Final = "reserved"
OVERFLOW: Final = "overflow"
TIER: Final = "tier"
"""Label for the tier, unless a gate parameter names another label."""
INTERACTIVE: Final = "interactive"
TIERS: Final = (INTERACTIVE, "async", "batch")

BANDS: Final = tuple(f"{classification}-{tier}" for classification in (RESERVED, OVERFLOW) for tier in TIERS)
"""`reserved-interactive` to `overflow-batch`; the index is the band's number."""


def band_of(labels: Mapping[str, str], tier_label: str = TIER) -> int:
    """Number of a request's band.

    An unknown tier counts as `batch`, any classification but `reserved` as `overflow`.
    """
    tier = labels.get(tier_label, "")
    rank = TIERS.index(tier) if tier in TIERS else len(TIERS) - 1
    return rank if labels.get(CLASSIFICATION) == RESERVED else rank + len(TIERS)


def labelled(request: Request, labels: Mapping[str, str]) -> Request:
    """Copy of `request` with `labels` added. They replace labels of the same name."""
    if not labels:
        return request
    return msgspec.structs.replace(request, labels={**request.labels, **labels})


def without_labels(request: Request, names: Collection[str]) -> Request:
    """Copy of `request` without the labels of these names."""
    if request.labels.keys().isdisjoint(names):
        return request
    kept = {name: value for name, value in request.labels.items() if name not in names}
    return msgspec.structs.replace(request, labels=kept)
