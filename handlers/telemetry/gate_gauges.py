"""Gauges of gates, read from `Gate.state` at each scrape.

Their labels name the owner of the gate: a queue, or a pool (then the queue labels are empty).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, Protocol

from prometheus_client import CollectorRegistry, Gauge

from handlers.telemetry.families import METRIC_PREFIX

Owner = tuple[str, str, str]
"""queue_id, queue_name (both empty for a pool's gate), pool_name."""

_OWNER: Final = ("queue_id", "queue_name", "pool_name")
_AIMD: Final = {
    "aimd_window": "Congestion window of a band, in requests.",
    "aimd_ssthresh": "Slow-start threshold of a band, in requests.",
    "aimd_inflight": "Requests in flight of a band.",
}


class GateView(Protocol):
    """Snapshot of a gate; `handlers.gates.gate.GateState` implements it."""

    @property
    def gate_type(self) -> str: ...  # see GateState
    @property
    def budget(self) -> float: ...  # see GateState
    @property
    def value(self) -> float | None: ...  # see GateState
    @property
    def threshold(self) -> float | None: ...  # see GateState
    @property
    def is_source_available(self) -> bool: ...  # see GateState
    @property
    def on_missing(self) -> str: ...  # see GateState
    @property
    def why_closed(self) -> str: ...  # see GateState
    @property
    def label(self) -> str: ...  # see GateState
    @property
    def figures(self) -> Mapping[str, float]: ...  # see GateState
    @property
    def inner(self) -> Sequence[GateView]: ...  # see GateState


class GateGauges:
    """The gauges of all gates.

    `budget` is the process's gauge of budgets, which is set for gates of queues too.
    """

    def __init__(self, registry: CollectorRegistry, budget: Gauge) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"{METRIC_PREFIX}_{name}", text, labels, registry=registry)

        self._budget = budget
        self._value = gauge("gate_metric_value", "Last value that a gate read.", *_OWNER, "inference_pool")
        self._threshold = gauge(
            "gate_metric_threshold", "Value at or below which a gate closes.", *_OWNER, "inference_pool"
        )
        self._available = gauge(
            "gate_metric_source_available",
            "1 while a gate's source has a reading.",
            *_OWNER,
            "inference_pool",
        )
        self._on_missing = gauge(
            "gate_on_missing_in_force",
            "1 while a gate without a reading follows this rule.",
            *_OWNER,
            "inference_pool",
            "rule",
        )
        self._closed = gauge("gate_closed", "1 while a gate admits nothing.", *_OWNER, "gate_type")
        self._figures = gauge(
            "gate_figure", "Other numbers of a gate, by name.", *_OWNER, "gate_type", "figure"
        )
        self._aimd = {name: gauge(name, text, "pool_name", "band") for name, text in _AIMD.items()}
        self._gates: dict[Owner, Callable[[], GateView]] = {}

    def watch(self, owner: Owner, state: Callable[[], GateView]) -> None:
        """Show a gate of `owner`; `state` is called at each scrape."""
        self._gates[owner] = state

    def forget(self, owner: Owner) -> None:
        """Stop showing the gates of `owner`."""
        self._gates.pop(owner, None)
        if owner[0]:  # a pool's budget is set even if it has no gate
            self._budget.remove_by_labels(dict(zip(_OWNER, owner, strict=True)))

    def refresh(self) -> None:
        """Read all gates. Series of unused bands disappear."""
        gauges = (
            self._value,
            self._threshold,
            self._available,
            self._on_missing,
            self._closed,
            self._figures,
        )
        for gauge in (*gauges, *self._aimd.values()):
            gauge.clear()
        for owner, read in self._gates.items():
            state = read()
            if owner[0]:
                self._budget.labels(*owner).set(state.budget)
            # If two gates of one owner read the same pool, the one with the lowest budget is shown.
            for view in sorted(_all(state), key=lambda view: -view.budget):
                self._show(owner, view)

    def _show(self, owner: Owner, view: GateView) -> None:
        if any(name in view.figures for name in _AIMD):
            for name, gauge in self._aimd.items():
                gauge.labels(owner[2], view.label).set(view.figures.get(name, 0.0))
            return
        closed = self._closed.labels(*owner, view.gate_type)
        closed.set(1.0 if view.why_closed else 0.0)
        for name, number in view.figures.items():
            self._figures.labels(*owner, view.gate_type, name).set(number)
        if view.threshold is not None:
            self._show_reading(owner, view, view.threshold)

    def _show_reading(self, owner: Owner, view: GateView, threshold: float) -> None:
        labels = (*owner, view.label)
        # The reference publishes 1 - saturation, so that every gate closes at or below its threshold.
        is_saturation = view.gate_type == "prometheus-saturation"
        self._threshold.labels(*labels).set(1 - threshold if is_saturation else threshold)
        if view.value is not None:
            self._value.labels(*labels).set(1 - view.value if is_saturation else view.value)
        self._available.labels(*labels).set(1.0 if view.is_source_available else 0.0)
        if view.on_missing:
            self._on_missing.labels(*labels, view.on_missing).set(1.0)


def _all(view: GateView) -> Iterator[GateView]:
    yield view
    for inner in view.inner:
        yield from _all(inner)
