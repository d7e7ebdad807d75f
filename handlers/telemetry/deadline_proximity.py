"""How long the pending requests have left: a histogram of exact counts, taken anew at each look at a queue.

As in the reference it is a snapshot, not a sum of observations: read it with `histogram_quantile` as it
is; `rate()` of it means nothing. `le="0"` are requests past their deadline that are still queued.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

DEADLINE_BOUNDS_SECONDS: Final = (0, 1, 5, 15, 30, 60, 120, 300, 600, 1_800, 3_600, 7_200, 21_600, 86_400)
"""The reference's own; a look counts the scores up to now plus each of them (ZCOUNT, one round trip)."""

_TEXT: Final = "Time left until the deadline of pending requests, in ms; a snapshot of exact counts."


class DeadlineProximity(Collector):
    """The last snapshot of each queue."""

    def __init__(self, name: str, labels: Sequence[str]) -> None:
        self._name = name
        self._labels = labels
        self._snapshots: dict[tuple[str, ...], tuple[Sequence[int], int]] = {}

    def replace(self, labels: tuple[str, ...], counts: Sequence[int], total: int) -> None:
        """`counts` are the requests due within each of `DEADLINE_BOUNDS_SECONDS`, `total` all of them."""
        if len(counts) != len(DEADLINE_BOUNDS_SECONDS):
            raise ValueError(f"{len(counts)} counts for {len(DEADLINE_BOUNDS_SECONDS)} bounds")
        # The queue moves between two counts of one look: a bucket never holds less than the one before.
        rising: list[int] = []
        for count in counts:
            rising.append(max(count, rising[-1] if rising else 0))
        self._snapshots[labels] = rising, max(total, rising[-1])

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """The family with every queue's snapshot."""
        family = HistogramMetricFamily(self._name, _TEXT, labels=self._labels)
        for labels, (counts, total) in self._snapshots.items():
            buckets = [
                (_label(bound), float(count))
                for bound, count in zip(DEADLINE_BOUNDS_SECONDS, counts, strict=True)
            ]
            family.add_metric(labels, [*buckets, ("+Inf", float(total))], _estimated_sum(counts, total))
        yield family


def _label(bound_seconds: int) -> str:
    """A bound in milliseconds, written as the reference writes it: 1000.0, 8.64e+07."""
    return str(floatToGoString(bound_seconds * 1000))  # type: ignore[no-untyped-call]  # untyped


def _estimated_sum(counts: Sequence[int], total: int) -> float:
    """Milliseconds, from the middle of each bucket; what is past its deadline counts 0, as exact sums cost a scan."""
    middles = [(low + high) / 2 for low, high in pairwise(DEADLINE_BOUNDS_SECONDS)]
    inside = sum((high - low) * middle for (low, high), middle in zip(pairwise(counts), middles, strict=True))
    return 1000 * (inside + (total - counts[-1]) * DEADLINE_BOUNDS_SECONDS[-1])
