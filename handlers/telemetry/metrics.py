"""Every metric, under the reference's names and labels, so that its dashboards work; and what they lack.

One `Metrics` for a process, made by the wiring and handed to the parts. The parts call a method per event
and never touch a label. Label values come from the settings alone (queues, pools) or from fixed sets, so
their number is bounded: whatever a request holds, it makes no new series.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

PREFIX: Final = "llm_d_async_async"
CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
_QUEUE: Final = ("queue_id", "queue_name", "pool_name")
_MS: Final = (
    1,
    2,
    5,
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
    300_000,
    600_000,
)
_LONG_MS: Final = (*_MS, 1_800_000, 3_600_000, 14_400_000, 43_200_000, 86_400_000)
REASONS: Final = frozenset(
    {
        *(
            "rejected",
            "unavailable",
            "server_error",
            "timeout",
            "too_early",
            "connect",
            "dns",
            "tls",
            "reset",
        ),
        *("broken_body", "broken_response", "handler_unavailable", "handler_lost", "handler_refused"),
        *("internal_error", "gate_closed", "quota_exhausted", "breaker_open"),
    }
)
"""Why a request is tried again; anything else counts as `other`."""


class QueueMetrics:
    """The series of one queue, looked up once."""

    def __init__(self, metrics: Metrics, queue_id: str, queue_name: str, pool_name: str) -> None:
        labels = (queue_id, queue_name, pool_name)
        self._metrics = metrics
        self._labels = labels
        self._requests = metrics.requests.labels(*labels)
        self._successful = metrics.successful.labels(*labels)
        self._failed = metrics.failed.labels(*labels)
        self._shedded = metrics.shedded.labels(*labels)
        self._exceeded = metrics.exceeded.labels(*labels)
        self._retries = metrics.retries.labels(*labels)
        self._latency = metrics.latency.labels(*labels)
        self._inference = metrics.inference.labels(*labels)
        self._residence = metrics.residence.labels(*labels)
        self._proximity = metrics.proximity.labels(*labels)
        self._attempts = metrics.attempts.labels(*labels)
        self._inflight = metrics.inflight.labels(*labels)
        self._reclaimed = metrics.reclaimed.labels(*labels)
        self._lost = metrics.leases_lost.labels(*labels)
        self._renewed = metrics.leases_renewed.labels(*labels)
        self._dead = metrics.dead_letters.labels(*labels)

    def started(self, attempt: int, residence_seconds: float | None) -> None:
        """An attempt begins; `residence_seconds` is the time since the request was created, if it says."""
        self._inflight.inc()
        if attempt == 0:
            self._requests.inc()
        if residence_seconds is not None:
            self._residence.observe(residence_seconds * 1000)

    def ended(self, inference_seconds: float) -> None:
        """An attempt is over, whatever its outcome."""
        self._inflight.dec()
        self._inference.observe(inference_seconds * 1000)

    def answered(self, status_code: int, error_code: str, attempt: int) -> None:
        """A final result."""
        self._attempts.observe(attempt + 1)
        if 200 <= status_code < 300:
            self._successful.inc()
        elif error_code == "DEADLINE_EXCEEDED":
            self._exceeded.inc()
        else:
            self._failed.inc()

    def timed(self, total_seconds: float | None, left_seconds: float) -> None:
        """How long it took from its creation to the final result, and what was left of the deadline."""
        if total_seconds is not None:
            self._latency.observe(total_seconds * 1000)
        self._proximity.observe(max(0.0, left_seconds) * 1000)

    def retried(self, reason: str) -> None:
        """The request goes back for another attempt."""
        self._retries.inc()
        if reason == "rejected":
            self._shedded.inc()
        known = reason if reason in REASONS else "other"
        self._metrics.nacks.labels(*self._labels, known).inc()

    def reclaimed(self, count: int) -> None:
        """Claims of dead owners went back to pending."""
        self._reclaimed.inc(count)

    def renewed(self, count: int, lost: int) -> None:
        """A heartbeat renewed leases, and found some lost."""
        self._renewed.inc(count)
        self._lost.inc(lost)

    def buried(self, count: int) -> None:
        """Requests became dead letters."""
        self._dead.inc(count)

    def depth(self, pending: int, claimed: int, retrying: int, dead: int, oldest_seconds: float) -> None:
        """What a look at the queue found; `oldest_seconds` is the time to the earliest deadline."""
        self._metrics.queue_depth.labels(*self._labels).set(pending)
        self._metrics.backlog.labels(*self._labels).set(pending + claimed + retrying)
        self._metrics.dead_depth.labels(*self._labels).set(dead)
        self._metrics.earliest_deadline.labels(*self._labels).set(oldest_seconds)


class Metrics:
    """All series of a process, in a registry of their own."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self.requests = self._counter("request_total", "Requests at their first attempt.")
        self.successful = self._counter("successful_requests_total", "Requests with a 2xx.")
        self.failed = self._counter("failed_requests_total", "Requests with another final result.")
        self.shedded = self._counter("shedded_requests_total", "Attempts that the gateway rejected with 429.")
        self.exceeded = self._counter("exceeded_deadline_requests_total", "Requests whose deadline passed.")
        self.retries = self._counter("request_retries_total", "Requests that went back for another attempt.")
        self.dead_letters = self._counter("dead_letters_total", "Requests kept as dead letters.")
        self.leases_renewed = self._counter("lease_renewals_total", "Leases renewed.")
        self.leases_lost = self._counter("lease_losses_total", "Leases lost while the work went on.")
        self.reclaimed = self._counter("reclaimed_requests_total", "Requests taken back from dead owners.")
        self.nacks = self._counter("nacks_total", "Retries by reason.", "reason")
        self.latency = self._histogram("message_latency_time_millis", "Creation to final result.", _LONG_MS)
        self.inference = self._histogram("inference_latency_time_millis", "One attempt.", _MS)
        self.residence = self._histogram("queue_residence_time_millis", "Creation to attempt.", _LONG_MS)
        self.proximity = self._histogram("deadline_proximity_millis", "Left of the deadline.", _LONG_MS)
        self.attempts = self._histogram("attempts_per_request", "Attempts.", (1, 2, 3, 5, 8, 13, 21))
        self.queue_depth = self._gauge("queue_depth", "Requests pending.")
        self.backlog = self._gauge("broker_backlog", "Requests pending, claimed or waiting for a retry.")
        self.dead_depth = self._gauge("dead_letters_kept", "Requests kept as dead letters now.")
        self.earliest_deadline = self._gauge("earliest_deadline_seconds", "Time to the earliest deadline.")
        self.inflight = self._gauge("inflight_requests", "Attempts under way.")
        self.workers = Gauge(f"{PREFIX}_pool_worker_limit", "Slots.", ("pool_name",), registry=self.registry)
        self.budget = Gauge(
            f"{PREFIX}_dispatch_budget", "Budget, 0 to 1.", ("pool_name",), registry=self.registry
        )

    def _counter(self, name: str, text: str, *more: str) -> Counter:
        return Counter(f"{PREFIX}_{name}", text, (*_QUEUE, *more), registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[int, ...]) -> Histogram:
        return Histogram(f"{PREFIX}_{name}", text, _QUEUE, buckets=buckets, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"{PREFIX}_{name}", text, _QUEUE, registry=self.registry)

    @lru_cache(maxsize=1_024)  # noqa: B019  # one Metrics for a process
    def of_queue(self, queue_id: str, queue_name: str, pool_name: str) -> QueueMetrics:
        """The series of a queue; only names from the settings may come here."""
        return QueueMetrics(self, queue_id, queue_name, pool_name)

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self.registry)
