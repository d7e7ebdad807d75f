"""Metrics of a process.

Names and labels are those of `llm-d-async`, so that its dashboards work. The wiring creates one `Metrics` per process.
Callers report each event to a method:

    metrics = Metrics()
    queue = metrics.of_queue("q", "request-sortedset", "default")   # once, kept
    queue.started(attempt=0, residence_seconds=1.5)
    began_at = queue.sending()                                      # one call to the gateway
    queue.sent(began_at)
    queue.ended()
    queue.answered(200, "", attempt=0)
    queue.timed(total_seconds=2.4, left_seconds=57.6)

Label values come from settings (queues, pools) or from fixed sets, so a request cannot create series. An event costs
about a microsecond. Gauges (gates, connections, depths) are read at each scrape.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Gauge, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from handlers.contract.result import token_usage
from handlers.telemetry.dependencies import Dependencies, GateState
from handlers.telemetry.families import Families, GateGauges
from handlers.telemetry.logs import get_logger

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
MOST_SHOWN_QUEUES: Final = 500
"""Maximum number of queues and subscriptions with their own series. Pushes name their subscription, hence a limit."""
OTHER: Final = "other"

GATE_REASONS: Final = ("gate_closed", "quota_exhausted", "dropped", "error")
"""Reasons why a gate did not admit a request; all series exist from the start."""
_GATE_ERRORS: Final = {"GATE_DROPPED": "dropped", "GATE_ERROR": "error"}
REASONS: Final = frozenset(
    {
        *("rejected", "unavailable", "server_error", "timeout", "too_early", "connect", "dns", "tls", "reset"),
        *("broken_body", "broken_response", "handler_unavailable", "handler_lost", "handler_refused"),
        *("internal_error", "gate_closed", "quota_exhausted", "not_recorded", "payload_not_read"),
        *("circuit_open", "circuit_recovering", "retry_budget"),
    }
)
"""Reasons of a retry; any other reason counts as `other`."""
_NOT_TRIED: Final = frozenset({"circuit_open", "circuit_recovering", "retry_budget"})
"""Reasons of requests that the breaker did not send, so they do not count as retries (see `middleware.breaker`)."""
PEERS: Final = frozenset({"gateway", "handler", "redis", "pubsub"})
"""Peers of open connections."""


class QueueMetrics:
    """Series of one queue; all times are durations in seconds."""

    def __init__(
        self, metrics: Families, queue_id: str, queue_name: str, pool_name: str, *, model_name: str = ""
    ) -> None:
        labels = (queue_id, queue_name, pool_name)
        self._metrics = metrics
        self._labels = labels
        self._model_name = model_name
        self._in_flight = 0
        self._sending = 0
        self._requests = metrics.requests.labels(*labels)
        self._dispatched = metrics.dispatched.labels(*labels)
        self._successful = metrics.successful.labels(*labels)
        self._failed = metrics.failed.labels(*labels)
        self._shedded = metrics.shedded.labels(*labels)
        self._exceeded = metrics.exceeded.labels(*labels)
        self._retries = metrics.retries.labels(*labels)
        self._gate_requeues = metrics.gate_requeues.labels(*labels)
        self._latency = metrics.latency.labels(*labels)
        self._inference = metrics.inference.labels(*labels)
        self._residence = metrics.residence.labels(*labels)
        self._left = metrics.left.labels(*labels)
        self._attempts = metrics.attempts.labels(*labels)
        self._publish = metrics.publish.labels(*labels)
        self._reclaimed = metrics.reclaimed.labels(*labels)
        self._lost = metrics.leases_lost.labels(*labels)
        self._renewed = metrics.leases_renewed.labels(*labels)
        self._dead = metrics.dead_letters.labels(*labels)
        self._read = metrics.tokens.labels(*labels, "input")
        self._written = metrics.tokens.labels(*labels, "output")
        self._decisions = {reason: metrics.gate_decisions.labels(*labels, reason) for reason in GATE_REASONS}
        # All series exist from the start, because Prometheus does not see the first increase of a new counter.
        self._nacks = {reason: metrics.nacks.labels(*labels, reason) for reason in (*sorted(REASONS), OTHER)}
        # Computed at each scrape, so that the two most frequent events cost only an addition.
        metrics.inflight.labels(*labels).set_function(lambda: self._in_flight)
        metrics.queue_depth.labels(*labels).set_function(lambda: self._in_flight - self._sending)

    @property
    def has_own_series(self) -> bool:
        """Whether the queue has its own series; False beyond `MOST_SHOWN_QUEUES`."""
        return self._labels[0] != OTHER

    def started(self, attempt: int, residence_seconds: float | None) -> None:
        """Count the start of an attempt.

        `residence_seconds` is the time since the request was created, if known.
        """
        self._in_flight += 1
        if attempt == 0:
            self._requests.inc()
        if residence_seconds is not None:
            self._residence.observe(residence_seconds * 1000)

    def sending(self) -> float:
        """Count the start of a call; return the argument for `sent`."""
        self._sending += 1
        return time.perf_counter()

    def sent(self, began_at: float) -> None:
        """Count the end of a call, whatever its outcome."""
        self._sending -= 1
        self._dispatched.inc()
        self._inference.observe((time.perf_counter() - began_at) * 1000)

    def ended(self) -> None:
        """Count the end of an attempt, whatever its outcome."""
        self._in_flight -= 1

    def answered(self, status_code: int, error_code: str, attempt: int) -> None:
        self._attempts.observe(attempt + 1)
        if 200 <= status_code < 300:
            self._successful.inc()
        elif error_code == "DEADLINE_EXCEEDED":
            self._exceeded.inc()
        else:
            self._failed.inc()
            if error_code in _GATE_ERRORS:
                self._decisions[_GATE_ERRORS[error_code]].inc()

    def used(self, body: str | bytes) -> None:
        """Count the tokens that the body of a 2xx response reports."""
        usage = token_usage(body)
        if usage is not None:
            self._read.inc(usage.input_tokens)
            self._written.inc(usage.output_tokens)

    def timed(self, total_seconds: float | None, left_seconds: float) -> None:
        """Record the total time to a final result and the time left."""
        if total_seconds is not None:
            self._latency.observe(total_seconds * 1000)
        self._left.observe(max(0.0, left_seconds) * 1000)

    def published(self, seconds: float) -> None:
        """Record the time until store or broker confirmed a result."""
        self._publish.observe(seconds * 1000)

    def retried(self, reason: str) -> None:
        """Count a nack. Refusals by gates and the breaker are not retries."""
        known = reason if reason in REASONS else OTHER
        self._nacks[known].inc()
        if known in self._decisions:
            self._decisions[known].inc()
            self._gate_requeues.inc()
            return
        if known in _NOT_TRIED:
            return
        self._retries.inc()
        if known == "rejected":
            self._shedded.inc()

    def reclaimed(self, count: int) -> None:
        """Count claims of crashed pollers that went back to pending."""
        self._reclaimed.inc(count)

    def renewed(self, count: int, lost: int) -> None:
        """Count leases that a heartbeat renewed or found lost."""
        self._renewed.inc(count)
        self._lost.inc(lost)

    def dead_lettered(self, count: int) -> None:
        self._dead.inc(count)

    def depth(
        self,
        pending: int,
        claimed: int,
        retrying: int,
        dead: int,
        oldest_seconds: float,
        *,
        oldest_age_seconds: float | None = None,
    ) -> None:
        """Set the queue's depth gauges.

        `retrying` is the size of the retry set, which the queues of a process share. `oldest_seconds` is the time until
        the earliest deadline, `oldest_age_seconds` the age of the oldest pending request.
        """
        metrics, labels = self._metrics, self._labels
        metrics.backlog.labels(*labels, self._model_name).set(pending)
        metrics.backlog_known.labels(*labels).set(1)
        metrics.claimed.labels(*labels).set(claimed)
        metrics.waiting.set(retrying)
        metrics.dead_depth.labels(*labels).set(dead)
        metrics.earliest_deadline.labels(*labels).set(oldest_seconds)
        if oldest_age_seconds is not None:
            metrics.oldest_age.labels(*labels).set(oldest_age_seconds)

    def depth_unknown(self) -> None:
        """Mark the depth gauges as out of date; their last values stay."""
        self._metrics.backlog_known.labels(*self._labels).set(0)

    def deadlines(self, counts: Sequence[int], total: int) -> None:
        """Set the counts of pending requests by `DEADLINE_BOUNDS_SECONDS`, and the total."""
        self._metrics.proximity.replace(self._labels, counts, total)


class Metrics(Families):
    """All series of a process in a registry of their own."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # untyped; avoids a second series per counter
        super().__init__(CollectorRegistry())
        self._queues: dict[tuple[str, str, str], QueueMetrics] = {}
        self._watches: list[Callable[[], None]] = []
        self._log = get_logger("metrics")
        self._gates = GateGauges(self.registry, self.dispatch_budget)

    def of_queue(self, queue_id: str, queue_name: str, pool_name: str, *, model_name: str = "") -> QueueMetrics:
        """Series of a queue or subscription; beyond `MOST_SHOWN_QUEUES`, the series of `other`.

        The autoscaler of a model selects the queue's backlog by `model_name`.
        """
        key = (queue_id, queue_name, pool_name)
        found = self._queues.get(key)
        if found is None:
            if len(self._queues) >= MOST_SHOWN_QUEUES:
                key, model_name = (OTHER, OTHER, OTHER), ""
            found = self._queues.get(key) or QueueMetrics(self, *key, model_name=model_name)
            self._queues[key] = found
        return found

    def forget_queue(self, labels: tuple[str, str, str]) -> None:
        """Remove the gauges of a removed queue (id, name, pool); counters stay."""
        self.forget_gate(*labels)
        if self._queues.pop(labels, None) is None:
            return
        self.proximity.forget(labels)
        self._remove_gauges(dict(zip(("queue_id", "queue_name", "pool_name"), labels, strict=True)))

    def forget_pool(self, pool_name: str) -> None:
        """Remove the gauges of a removed pool."""
        self.forget_gate("", "", pool_name)
        self._remove_gauges({"queue_id": "", "queue_name": "", "pool_name": pool_name})
        for gauge in (self.gate_waiting, self.workers):
            gauge.remove_by_labels({"pool_name": pool_name})

    def _remove_gauges(self, labels: dict[str, str]) -> None:
        gauges = [one for one in vars(self).values() if isinstance(one, Gauge)]
        for gauge in gauges:
            if labels.keys() <= set(gauge._labelnames):
                gauge.remove_by_labels(labels)

    def forget_gate(self, queue_id: str, queue_name: str, pool_name: str) -> None:
        """Stop showing the gates of a queue or pool."""
        self._gates.forget((queue_id, queue_name, pool_name))

    def pool(self, pool_name: str, slots: int, budget: float, waiting: int = 0) -> None:
        """Set a pool's gauges.

        `budget` is the fraction of its slots that its gates allow (0 to 1), `waiting` the number of requests that wait
        at its gates.
        """
        self.gate_waiting.labels(pool_name).set(waiting)
        self.workers.labels(pool_name).set(slots)
        self.dispatch_budget.labels("", "", pool_name).set(budget)

    def refused(self, status: int) -> None:
        """Count a refused caller. Unusual statuses count as `other`."""
        self.refusals.labels(str(status) if status in (401, 403, 503) else OTHER).inc()

    def watch(self, refresh: Callable[[], None]) -> None:
        """Call `refresh` before each scrape to set gauges; it must be cheap."""
        self._watches.append(refresh)

    def watch_gate(self, queue_id: str, queue_name: str, pool_name: str, state: Callable[[], GateState]) -> None:
        """Show a gate's state. For a pool's gate, queue id and name are empty."""
        self._gates.watch((queue_id, queue_name, pool_name), state)

    def watch_connections(self, peer: str, count: Callable[[], int]) -> None:
        """Show the connections in use to `peer`; a later `count` replaces the earlier one."""
        self.connections.labels(peer if peer in PEERS else OTHER).set_function(count)

    def watch_circuits(self, count: Callable[[], int]) -> None:
        """Show the number of circuits not closed."""
        self.open_circuits.set_function(count)

    def watch_ready(self, is_ready: Callable[[], bool]) -> None:
        self.ready.set_function(lambda: 1.0 if is_ready() else 0.0)

    def watch_claims(self, is_refused: Callable[[], bool]) -> None:
        self.claims_refused.set_function(lambda: float(is_refused()))

    def watch_clock(self, skew_seconds: Callable[[], float]) -> None:
        """Show the seconds by which the local clock is ahead."""
        self.clock_skew.set_function(skew_seconds)

    def watch_refusals(self, is_refused: Callable[[], bool]) -> None:
        """Show whether a changed configuration is refused."""
        self.config_refused.set_function(lambda: float(is_refused()))

    def watch_dependencies(self, dependencies: Dependencies) -> None:
        for name in dependencies.names():
            shown = self.dependency_up.labels(name)
            shown.set_function(lambda name=name: float(name not in dependencies.failing()))  # type: ignore[misc]  # a default binds it now

    def render(self) -> bytes:
        """The exposition text, of type `CONTENT_TYPE`.

        If a gauge cannot be read, that is logged and it keeps its value.
        """
        for refresh in (*self._watches, self._gates.refresh):
            try:
                refresh()
            except Exception as error:  # noqa: BLE001  # one broken gauge must not hide the others
                self._log.error("gauge read failed", error=repr(error))
        return generate_latest(self.registry)


OUTCOMES: Final = ("answered", "retry", "not_recorded", "no_room")
"""Outcomes of a delivery: `not_recorded` could not store its result, `no_room` had no room; both are redelivered."""


class DoorMetrics:
    """Series of one door (the target of a handler).

    Their names differ from the poller's, because the poller also counts the requests that it sends to handlers, and a
    sum over all pods must not count them twice.
    """

    def __init__(self, families: Families, door: str) -> None:
        self._in_flight = 0
        self._outcomes = {outcome: families.deliveries.labels(door, outcome) for outcome in OUTCOMES}
        self._seconds = families.delivery_time.labels(door)
        families.deliveries_in_flight.labels(door).set_function(lambda: self._in_flight)

    def started(self) -> None:
        self._in_flight += 1

    def ended(self) -> None:
        self._in_flight -= 1

    def no_room(self) -> None:
        """Count a delivery that was refused before its body was read."""
        self._outcomes["no_room"].inc()

    def settled(self, outcome: str, seconds: float) -> None:
        """Count a delivery that ended as one of `OUTCOMES`, with its duration."""
        self._outcomes[outcome].inc()
        self._seconds.observe(seconds * 1000)
