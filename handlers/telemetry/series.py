"""Counters and histograms of one event loop: an event costs an addition, without prometheus-client's locks.

They are collectors of a `CollectorRegistry`; names, labels and output are those of prometheus-client's own classes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Count:
    """One series of a counter."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1) -> None:
        """Add `amount`, which is not negative."""
        self.value += amount


class Counter(Collector):
    """A family of counters; `labels` returns the series of these values and creates it if it is new."""

    def __init__(self, name: str, text: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self._name = name
        self._text = text
        self._label_names = tuple(labels)
        self._series: dict[tuple[str, ...], Count] = {}
        registry.register(self)

    def labels(self, *values: str) -> Count:
        return self._series.setdefault(_checked(values, self._label_names), Count())

    def describe(self) -> Iterable[CounterMetricFamily]:
        return [CounterMetricFamily(self._name, self._text, labels=self._label_names)]

    def collect(self) -> Iterable[CounterMetricFamily]:
        family = CounterMetricFamily(self._name, self._text, labels=self._label_names)
        for values, series in self._series.items():
            family.add_metric(values, series.value)
        return [family]


class Observations:
    """One series of a histogram."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, amount: float) -> None:
        """Count `amount` in the first bucket whose bound is not below it."""
        self.counts[bisect_left(self._bounds, amount)] += 1
        self.total += amount


class Histogram(Collector):
    """A family of histograms with the upper bounds `buckets`, in rising order and without infinity."""

    def __init__(
        self,
        name: str,
        text: str,
        labels: Sequence[str],
        registry: CollectorRegistry,
        *,
        buckets: Sequence[float],
    ) -> None:
        self._name = name
        self._text = text
        self._label_names = tuple(labels)
        self._bounds: Final = tuple(float(bound) for bound in buckets)
        self._shown = [str(floatToGoString(bound)) for bound in (*self._bounds, float("inf"))]  # type: ignore[no-untyped-call]  # untyped
        self._series: dict[tuple[str, ...], Observations] = {}
        registry.register(self)

    def labels(self, *values: str) -> Observations:
        key = _checked(values, self._label_names)
        found = self._series.get(key)
        if found is None:
            found = self._series[key] = Observations(self._bounds)
        return found

    def describe(self) -> Iterable[HistogramMetricFamily]:
        return [HistogramMetricFamily(self._name, self._text, labels=self._label_names)]

    def collect(self) -> Iterable[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._text, labels=self._label_names)
        for values, series in self._series.items():
            up_to = accumulate(series.counts)
            buckets = [(bound, float(count)) for bound, count in zip(self._shown, up_to, strict=True)]
            family.add_metric(values, buckets, series.total)
        return [family]


def _checked(values: tuple[str, ...], names: tuple[str, ...]) -> tuple[str, ...]:
    if len(values) != len(names):
        raise ValueError(f"expected values of {names}, got {len(values)}")
    return values
