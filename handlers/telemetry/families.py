"""Prometheus metric families: names, labels and buckets.

In each list, names and labels of `llm-d-async` (the reference) come first. Callers use the methods of
`handlers.telemetry.metrics` and never see a label. Gauges of gates are read from `Gate.state` at each scrape; their
labels name the owner of the gate: a queue, or a pool (then the queue labels are empty).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from handlers.telemetry.dependencies import GateState

DEADLINE_BOUNDS_SECONDS: Final = (0, 1, 5, 15, 30, 60, 120, 300, 600, 1_800, 3_600, 7_200, 21_600, 86_400)
"""The reference's buckets. Requests due within each are counted with ZCOUNT, in one round trip."""

_TEXT: Final = "Time left until the deadline of pending requests, in ms; a snapshot of exact counts."


class DeadlineProximity(Collector):
    """Histogram of the time to the deadlines of pending requests.

    As in the reference, it has the exact counts of the last snapshot, not a sum of observations: use
    `histogram_quantile` without `rate()`. `le="0"` counts requests past their deadline that are still queued.
    """

    def __init__(self, name: str, labels: Sequence[str]) -> None:
        self._name = name
        self._labels = labels
        self._snapshots: dict[tuple[str, ...], tuple[Sequence[int], int]] = {}

    def replace(self, labels: tuple[str, ...], counts: Sequence[int], total: int) -> None:
        """Set a snapshot: counts by `DEADLINE_BOUNDS_SECONDS`, and the total."""
        if len(counts) != len(DEADLINE_BOUNDS_SECONDS):
            raise ValueError(
                f"counts: expected {len(DEADLINE_BOUNDS_SECONDS)} (one for each deadline bound), got {len(counts)}"
            )
        # The queue may change between two counts, but a bucket must not hold less than the one before.
        rising: list[int] = []
        for count in counts:
            rising.append(max(count, rising[-1] if rising else 0))
        self._snapshots[labels] = rising, max(total, rising[-1])

    def forget(self, labels: tuple[str, ...]) -> None:
        self._snapshots.pop(labels, None)

    def collect(self) -> Iterable[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, _TEXT, labels=self._labels)
        for labels, (counts, total) in self._snapshots.items():
            buckets = [
                (_label(bound), float(count)) for bound, count in zip(DEADLINE_BOUNDS_SECONDS, counts, strict=True)
            ]
            family.add_metric(labels, [*buckets, ("+Inf", float(total))], _estimated_sum(counts, total))
        yield family


def _label(bound_seconds: int) -> str:
    """Bound in milliseconds, formatted as the reference does: 1000.0, 8.64e+07."""
    return str(floatToGoString(bound_seconds * 1000))  # type: ignore[no-untyped-call]  # untyped


def _estimated_sum(counts: Sequence[int], total: int) -> float:
    """Sum in milliseconds, estimated from the middles of the buckets.

    An exact sum would have to scan the queue.
    """
    middles = [(low + high) / 2 for low, high in pairwise(DEADLINE_BOUNDS_SECONDS)]
    inside = sum((high - low) * middle for (low, high), middle in zip(pairwise(counts), middles, strict=True))
    return 1000 * (inside + (total - counts[-1]) * DEADLINE_BOUNDS_SECONDS[-1])


class _FastCounter(Counter):
    """A counter for one thread. It uses the library's lock only at a scrape."""

    def _metric_init(self) -> None:
        super()._metric_init()
        self._sum = 0.0

    def inc(self, amount: float = 1, exemplar: Mapping[str, str] | None = None) -> None:  # noqa: ARG002  # none is used
        self._sum += amount

    def _child_samples(self) -> Iterable[Sample]:
        self._value.set(self._sum)
        return super()._child_samples()


class _FastHistogram(Histogram):
    """A histogram for one thread. An observation takes a third of the library's time."""

    def _metric_init(self) -> None:
        super()._metric_init()
        self._total, self._counts = 0.0, [0] * len(self._upper_bounds)

    def observe(self, amount: float, exemplar: Mapping[str, str] | None = None) -> None:  # noqa: ARG002  # none is used
        self._total += amount
        self._counts[bisect_left(self._upper_bounds, amount)] += 1

    def _child_samples(self) -> Iterable[Sample]:
        self._sum.set(self._total)
        for bucket, count in zip(self._buckets, self._counts, strict=True):
            bucket.set(count)
        return super()._child_samples()


METRIC_PREFIX: Final = "llm_d_async_async"
_QUEUE: Final = ("queue_id", "queue_name", "pool_name")
# Buckets include those of the reference, which its dashboards select by `le`.
_INFERENCE_MS: Final = (
    10,
    25,
    50,
    100,
    250,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    30_000,
    60_000,
    120_000,
    300_000,
    600_000,
)
_LATENCY_MS: Final = (
    25,
    100,
    250,
    1_000,
    2_500,
    5_000,
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    3_600_000,
    14_400_000,
    43_200_000,
    86_400_000,
)
_RESIDENCE_MS: Final = (
    10,
    25,
    50,
    100,
    500,
    1_000,
    2_000,
    5_000,
    10_000,
    30_000,
    60_000,
    120_000,
    300_000,
    600_000,
    1_800_000,
    3_600_000,
    7_200_000,
    21_600_000,
    43_200_000,
    86_400_000,
)
_LEFT_MS: Final = (0, 1_000, 5_000, 15_000, 60_000, 300_000, 1_800_000, 7_200_000, 21_600_000, 86_400_000)
_PUBLISH_MS: Final = (1, 2, 5, 10, 25, 50, 100, 250, 1_000, 5_000, 30_000)
_ATTEMPTS: Final = (1, 2, 3, 5, 8, 13, 21)


class Families:
    """All families in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._add_counters()
        self._add_histograms()
        self._add_gauges()
        ProcessCollector(registry=registry)

    def _add_counters(self) -> None:
        counter = self._counter
        self.requests = counter("request_total", "Requests at their first attempt.")
        self.dispatched = counter("dispatched_requests_total", "Calls to the gateway, retries included.")
        self.successful = counter("successful_requests_total", "Requests answered with 2xx.")
        self.failed = counter("failed_requests_total", "Requests that ended with another final result.")
        self.shedded = counter("shedded_requests_total", "Attempts that the gateway rejected with 429.")
        self.exceeded = counter("exceeded_deadline_requests_total", "Requests whose deadline passed.")
        self.retries = counter("request_retries_total", "Requests put back for another attempt.")
        self.gate_requeues = counter("gate_wait_requeues_total", "Requests that a gate put back in the queue.")
        self.gate_decisions = counter(
            "gate_decisions_total", "Requests not admitted by a gate, by reason.", (*_QUEUE, "reason")
        )
        self.tokens = counter("tokens_total", "Tokens reported by 2xx responses.", (*_QUEUE, "direction"))
        self.dead_letters = counter("dead_letters_total", "Requests that were dead-lettered.")
        self.leases_renewed = counter("lease_renewals_total", "Leases renewed.")
        self.leases_lost = counter("lease_losses_total", "Leases lost while their requests were in flight.")
        self.reclaimed = counter("reclaimed_requests_total", "Requests reclaimed from crashed pollers.")
        self.nacks = counter("nacks_total", "Nacked deliveries, by reason.", (*_QUEUE, "reason"))
        self.deliveries = self._counter(
            "handler_deliveries_total",
            "Deliveries to a handler, by outcome (`no_room`: refused for lack of memory).",
            ("door", "outcome"),
        )
        self.refusals = self._counter("refused_callers_total", "Callers refused by authentication.", ("status",))

    def _add_histograms(self) -> None:
        histogram = self._histogram
        self.latency = histogram("message_latency_time_millis", "Time from creation to final result.", _LATENCY_MS)
        self.inference = histogram(
            "inference_latency_time_millis", "Duration of one call to the gateway.", _INFERENCE_MS
        )
        self.residence = histogram("queue_residence_time_millis", "Time from creation to an attempt.", _RESIDENCE_MS)
        self.left = histogram("deadline_left_millis", "Time left until the deadline at the final result.", _LEFT_MS)
        self.attempts = histogram("attempts_per_request", "Attempts until the final result.", _ATTEMPTS)
        self.publish = histogram(
            "result_publish_time_millis", "Time from an outcome until its result is recorded.", _PUBLISH_MS
        )
        self.delivery_time = self._histogram(
            "handler_delivery_time_millis",
            "Duration of a delivery to a handler, from arrival to response.",
            _INFERENCE_MS,
            ("door",),
        )

    def _add_gauges(self) -> None:
        self.proximity = DeadlineProximity(f"{METRIC_PREFIX}_deadline_proximity_millis", _QUEUE)
        self.registry.register(self.proximity)
        gauge = self._gauge
        self.queue_depth = gauge("queue_depth", "Requests in flight that wait at a gate or for a slot.")
        self.inflight = gauge("inflight_requests", "Requests claimed or received that have no outcome yet.")
        self.backlog = self._gauge(
            "broker_backlog",
            "Requests pending in the queue; model_name is the queue's label of that name.",
            (*_QUEUE, "model_name"),
        )
        self.gate_waiting = self._gauge(
            "gate_waiting_requests", "Requests that wait at the gates of a pool.", ("pool_name",)
        )
        self.backlog_known = gauge("broker_backlog_source_available", "1 if the last depth read succeeded.")
        self.claimed = gauge("claimed_requests", "Requests claimed by any poller, crashed ones included.")
        self.dead_depth = gauge("dead_letters_kept", "Dead letters in the store.")
        self.earliest_deadline = gauge("earliest_deadline_seconds", "Time until the earliest deadline.")
        self.oldest_age = gauge(
            "oldest_pending_age_seconds", "Age of the first or last pending request by deadline, whichever is older."
        )
        self.dispatch_budget = gauge("dispatch_budget", "Budget that the gates allow, 0 (closed) to 1.")
        self._add_process_gauges()

    def _add_process_gauges(self) -> None:
        self.deliveries_in_flight = self._gauge(
            "handler_inflight_deliveries", "Deliveries that a handler is processing.", ("door",)
        )
        self.open_circuits = self._gauge("open_circuits", "Circuit breakers that are not closed.", ())
        self.ready = self._gauge("ready", "1 while this process accepts work.", ())
        self.clock_skew = self._gauge(
            "clock_skew_seconds", "How far the local clock is ahead of the broker's (Redis, Pub/Sub).", ()
        )
        self.claims_refused = self._gauge(
            "claims_refused",
            "1 while Redis refuses claims, results, leases or retries: a missing right, or a key of another type.",
            (),
        )
        self.config_refused = self._gauge(
            "config_refused", "1 while the configuration file has a change that was refused.", ()
        )
        self.dependency_up = self._gauge(
            "dependency_up", "1 while this process's calls to the dependency succeed.", ("dependency",)
        )
        self.waiting = self._gauge("waiting_retries", "Requests in the retry set.", ())
        self.workers = self._gauge("pool_worker_limit", "Slots of a pool.", ("pool_name",))
        self.connections = self._gauge("connections_in_use", "Connections in use, by peer.", ("peer",))

    def _counter(self, name: str, text: str, labels: Sequence[str] = _QUEUE) -> Counter:
        return _FastCounter(f"{METRIC_PREFIX}_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[int, ...], labels: Sequence[str] = _QUEUE) -> Histogram:
        return _FastHistogram(f"{METRIC_PREFIX}_{name}", text, labels, buckets=buckets, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: Sequence[str] = _QUEUE) -> Gauge:
        return Gauge(f"{METRIC_PREFIX}_{name}", text, labels, registry=self.registry)


Owner = tuple[str, str, str]
"""queue_id, queue_name (both empty for a pool's gate), pool_name."""

_OWNER: Final = ("queue_id", "queue_name", "pool_name")
_AIMD: Final = {
    "aimd_window": "Congestion window of a band, in requests.",
    "aimd_ssthresh": "Slow-start threshold of a band, in requests.",
    "aimd_inflight": "Requests in flight of a band.",
}


class GateGauges:
    """The gauges of all gates.

    `budget` is the process's gauge of budgets, which is set for gates of queues too.
    """

    def __init__(self, registry: CollectorRegistry, budget: Gauge) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"{METRIC_PREFIX}_{name}", text, labels, registry=registry)

        self._budget = budget
        self._value = gauge("gate_metric_value", "Last value that a gate read.", *_OWNER, "inference_pool")
        self._threshold = gauge("gate_metric_threshold", "Value at which a gate closes.", *_OWNER, "inference_pool")
        self._available = gauge(
            "gate_metric_source_available", "1 while a gate's source has a reading.", *_OWNER, "inference_pool"
        )
        self._on_missing = gauge(
            "gate_on_missing_in_force",
            "1 while a gate without a reading follows this rule.",
            *_OWNER,
            "inference_pool",
            "rule",
        )
        self._closed = gauge("gate_closed", "1 while a gate is closed, also if its budget is 0.", *_OWNER, "gate_type")
        self._figures = gauge("gate_figure", "Other numbers of a gate, by name.", *_OWNER, "gate_type", "figure")
        self._aimd = {name: gauge(name, text, "pool_name", "band") for name, text in _AIMD.items()}
        self._gates: dict[Owner, Callable[[], GateState]] = {}

    def watch(self, owner: Owner, state: Callable[[], GateState]) -> None:
        """Show a gate of `owner`; `state` is called at each scrape."""
        self._gates[owner] = state

    def forget(self, owner: Owner) -> None:
        """Stop showing the gates of `owner`."""
        self._gates.pop(owner, None)
        if owner[0]:  # a pool's budget is set even if it has no gate
            self._budget.remove_by_labels(dict(zip(_OWNER, owner, strict=True)))

    def refresh(self) -> None:
        """Read all gates. Series of unused bands disappear."""
        gauges = (self._value, self._threshold, self._available, self._on_missing, self._closed, self._figures)
        for gauge in (*gauges, *self._aimd.values()):
            gauge.clear()
        for owner, read in self._gates.items():
            state = read()
            if owner[0]:
                self._budget.labels(*owner).set(state.budget)
            # If two gates of one owner read the same pool, the one with the lowest budget is shown.
            for view in sorted(_all(state), key=lambda view: -view.budget):
                self._show(owner, view)

    def _show(self, owner: Owner, view: GateState) -> None:
        if any(name in view.figures for name in _AIMD):
            for name, gauge in self._aimd.items():
                gauge.labels(owner[2], view.label).set(view.figures.get(name, 0.0))
            return
        closed = self._closed.labels(*owner, view.gate_type)
        closed.set(1.0 if view.closed_because else 0.0)
        for name, number in view.figures.items():
            self._figures.labels(*owner, view.gate_type, name).set(number)
        if view.threshold is not None:
            self._show_reading(owner, view, view.threshold)

    def _show_reading(self, owner: Owner, view: GateState, threshold: float) -> None:
        labels = (*owner, view.label)
        # The reference publishes 1 - saturation, so that every gate closes at or below its threshold.
        is_saturation = view.gate_type == "prometheus-saturation"
        self._threshold.labels(*labels).set(1 - threshold if is_saturation else threshold)
        if view.value is not None:
            self._value.labels(*labels).set(1 - view.value if is_saturation else view.value)
        self._available.labels(*labels).set(1.0 if view.is_source_available else 0.0)
        if view.on_missing:
            self._on_missing.labels(*labels, view.on_missing).set(1.0)


def _all(view: GateState) -> Iterator[GateState]:
    yield view
    for inner in view.inner:
        yield from _all(inner)
