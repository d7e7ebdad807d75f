"""Every metric, under the reference's names and labels, so that its dashboards work; and what they lack.

One `Metrics` for a process, made by the wiring and handed to the parts. The parts call a method per event
and never touch a label:

    metrics = Metrics()
    queue = metrics.of_queue("q", "request-sortedset", "default")   # once, kept
    queue.started(attempt=0, residence_seconds=1.5)
    began_at = queue.sending()                                      # one call to the gateway
    queue.sent(began_at)
    queue.ended()
    queue.answered(200, "", attempt=0)
    queue.timed(total_seconds=2.4, left_seconds=57.6)

Label values come from the settings (queues, pools) or from fixed sets, and are bounded besides: whatever a
request holds, it makes no new series. An event costs about a microsecond; what is only read off
(gates, connections, depths) costs nothing until somebody looks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final
from weakref import WeakSet, WeakValueDictionary

from prometheus_client import CollectorRegistry, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from handlers.contract.result import token_usage
from handlers.telemetry.dependencies import Dependencies
from handlers.telemetry.families import Families
from handlers.telemetry.gate_gauges import GateGauges, GateView
from handlers.telemetry.logs import get_logger

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
MOST_QUEUES: Final = 500
"""Queues and subscriptions with series of their own; a push names its subscription itself."""
OTHER: Final = "other"

GATE_REASONS: Final = ("gate_closed", "quota_exhausted", "dropped", "error")
"""Why a gate did not let a request go; all four exist from the start."""
_GATE_ERRORS: Final = {"GATE_DROPPED": "dropped", "GATE_ERROR": "error"}
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
        *("internal_error", "gate_closed", "quota_exhausted", "not_recorded"),
        *("circuit_open", "circuit_recovering", "retry_budget"),
    }
)
"""Why a request is tried again; anything else counts as `other`."""
_NOT_TRIED: Final = frozenset({"circuit_open", "circuit_recovering", "retry_budget"})
"""Not even sent, to spare the gateway: no retry either (`handlers.forward.middleware.guarded` says these)."""
PEERS: Final = frozenset({"gateway", "handler", "redis", "pubsub"})
"""To whom connections are open."""


class QueueMetrics:
    """The series of one queue, looked up once. All seconds are durations.

    `before` counted the queue until the settings changed: what it has in flight still counts, while anybody holds it.
    """

    def __init__(
        self,
        metrics: Families,
        queue_id: str,
        queue_name: str,
        pool_name: str,
        before: QueueMetrics | None = None,
    ) -> None:
        labels = (queue_id, queue_name, pool_name)
        self._metrics = metrics
        self._labels = labels
        self._in_flight = 0
        self._sending = 0
        self._elders: WeakSet[QueueMetrics] = WeakSet([] if before is None else [before, *before._elders])
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
        # All from the start: the first increase of a counter that was not there is no increase to Prometheus.
        self._nacks = {reason: metrics.nacks.labels(*labels, reason) for reason in (*sorted(REASONS), OTHER)}
        # Read when somebody looks: two of the most frequent events cost an addition.
        metrics.inflight.labels(*labels).set_function(
            lambda: sum(one._in_flight for one in (self, *self._elders))
        )
        metrics.queue_depth.labels(*labels).set_function(
            lambda: sum(one._in_flight - one._sending for one in (self, *self._elders))
        )

    def started(self, attempt: int, residence_seconds: float | None) -> None:
        """An attempt begins; `residence_seconds` is the time since the request was created, if it says."""
        self._in_flight += 1
        if attempt == 0:
            self._requests.inc()
        if residence_seconds is not None:
            self._residence.observe(residence_seconds * 1000)

    def sending(self) -> float:
        """One call to the gateway (or to a handler) begins; hand what this returns to `sent`."""
        self._sending += 1
        return time.perf_counter()

    def sent(self, began_at: float) -> None:
        """That call is over, whatever came of it."""
        self._sending -= 1
        self._dispatched.inc()
        self._inference.observe((time.perf_counter() - began_at) * 1000)

    def ended(self) -> None:
        """An attempt is over, whatever its outcome."""
        self._in_flight -= 1

    def answered(self, status_code: int, error_code: str, attempt: int) -> None:
        """A final result."""
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
        """Count the tokens that the body of a 2xx names."""
        usage = token_usage(body)
        if usage is not None:
            self._read.inc(usage.input_tokens)
            self._written.inc(usage.output_tokens)

    def timed(self, total_seconds: float | None, left_seconds: float) -> None:
        """How long it took from its creation to the final result, and what was left of the deadline."""
        if total_seconds is not None:
            self._latency.observe(total_seconds * 1000)
        self._left.observe(max(0.0, left_seconds) * 1000)

    def published(self, seconds: float) -> None:
        """A result was recorded: the time from knowing it to the store's or broker's word."""
        self._publish.observe(seconds * 1000)

    def retried(self, reason: str) -> None:
        """The request goes back for another attempt; what a gate refused was none, and counts apart."""
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

    def claiming_closed(self) -> None:
        """A look at the queue that took nothing because the gate is closed."""
        self._decisions["gate_closed"].inc()

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
        """What a look at the queue found.

        `retrying` counts the retry set, which the queues of a process share. `oldest_seconds` is the time to
        the earliest deadline, `oldest_age_seconds` how long the oldest pending request has been there.
        """
        metrics, labels = self._metrics, self._labels
        metrics.backlog.labels(*labels).set(pending)
        metrics.backlog_known.labels(*labels).set(1)
        metrics.claimed.labels(*labels).set(claimed)
        metrics.waiting.set(retrying)
        metrics.dead_depth.labels(*labels).set(dead)
        metrics.earliest_deadline.labels(*labels).set(oldest_seconds)
        if oldest_age_seconds is not None:
            metrics.oldest_age.labels(*labels).set(oldest_age_seconds)

    def depth_unknown(self) -> None:
        """A look at the queue failed: the last numbers stay, and say that they are old."""
        self._metrics.backlog_known.labels(*self._labels).set(0)

    def deadlines(self, counts: Sequence[int], total: int) -> None:
        """Pending requests due within each of `DEADLINE_BOUNDS_SECONDS` from now, and all of them."""
        self._metrics.proximity.replace(self._labels, counts, total)


class Metrics(Families):
    """All series of a process, in a registry of their own; `before` are those until the settings changed."""

    def __init__(self, registry: CollectorRegistry | None = None, before: Metrics | None = None) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # untyped; a second series for each counter
        super().__init__(registry or CollectorRegistry(), before)
        self._queues: dict[tuple[str, str, str], QueueMetrics] = {}
        self._queues_before = WeakValueDictionary(before._queues if before is not None else {})
        self._watches: list[Callable[[], None]] = []
        self._connection_counts: dict[str, list[Callable[[], int]]] = {}
        self._circuit_counts: list[Callable[[], int]] = []
        self._log = get_logger("metrics")
        self._gates = GateGauges(self.registry, self.dispatch_budget)

    def of_queue(self, queue_id: str, queue_name: str, pool_name: str) -> QueueMetrics:
        """The series of a queue or subscription; past `MOST_QUEUES` of them, those of `other`."""
        key = (queue_id, queue_name, pool_name)
        found = self._queues.get(key)
        if found is None:
            if len(self._queues) >= MOST_QUEUES:
                key = (OTHER, OTHER, OTHER)
            found = self._queues.get(key) or QueueMetrics(self, *key, self._queues_before.get(key))
            self._queues[key] = found
        return found

    def pool(self, pool_name: str, slots: int, budget: float) -> None:
        """A pool's slots, and what part of them its gate allows in use now, 0 to 1."""
        self.workers.labels(pool_name).set(slots)
        self.budget.labels(pool_name).set(budget)

    def refused(self, status: int) -> None:
        """A caller was not let in; only 401, 403 and 503 are told apart."""
        self.refusals.labels(str(status) if status in (401, 403, 503) else OTHER).inc()

    def watch(self, look: Callable[[], None]) -> None:
        """Call `look` before each exposition, to set what is only read off; it must be cheap."""
        self._watches.append(look)

    def watch_gate(
        self, queue_id: str, queue_name: str, pool_name: str, state: Callable[[], GateView]
    ) -> None:
        """Show a gate's state (`gate.state`); the first two are empty for the gate of a pool."""
        self._gates.watch((queue_id, queue_name, pool_name), state)

    def watch_connections(self, peer: str, count: Callable[[], int]) -> None:
        """Show how many connections to `peer` (one of `PEERS`) are at work; several counts add up."""
        known = peer if peer in PEERS else OTHER
        counts = self._connection_counts.setdefault(known, [])
        counts.append(count)
        self.connections.labels(known).set_function(lambda: sum(one() for one in counts))

    def watch_circuits(self, count: Callable[[], int]) -> None:
        """Show how many circuits are not closed; several counts add up."""
        self._circuit_counts.append(count)
        self.open_circuits.set_function(lambda: sum(one() for one in self._circuit_counts))

    def watch_ready(self, is_ready: Callable[[], bool]) -> None:
        """Show whether this process takes work."""
        self.ready.set_function(lambda: 1.0 if is_ready() else 0.0)

    def watch_claims(self, is_refused: Callable[[], bool]) -> None:
        """Show whether Redis refuses claims."""
        self.claims_refused.set_function(lambda: float(is_refused()))

    def watch_clock(self, skew_seconds: Callable[[], float]) -> None:
        """Show how far the local clock is ahead of the broker's, in seconds."""
        self.clock_skew.set_function(skew_seconds)

    def watch_refusals(self, is_refused: Callable[[], bool]) -> None:
        """Show whether a changed configuration is refused."""
        self.config_refused.set_function(lambda: float(is_refused()))

    def watch_dependencies(self, dependencies: Dependencies) -> None:
        """Show which of them work."""
        for name in dependencies.names():
            shown = self.dependency_up.labels(name)
            shown.set_function(lambda name=name: float(name not in dependencies.failing()))  # type: ignore[misc]  # a default binds it now

    def render(self) -> bytes:
        """The exposition text, of `CONTENT_TYPE`. What cannot be read off is left as it was, and logged."""
        for look in (*self._watches, self._gates.refresh):
            try:
                look()
            except Exception as error:  # noqa: BLE001  # one broken gauge must not hide all the others
                self._log.error("a gauge could not be read", error=repr(error))
        return generate_latest(self.registry)


OUTCOMES: Final = ("answered", "retry", "not_recorded")
"""`not_recorded`: there was a result, and nobody to take it; the delivery comes again."""


class DoorMetrics:
    """The series of one door; `door` is the target that the process serves."""

    def __init__(self, families: Families, door: str) -> None:
        self._in_flight = 0
        self._outcomes = {outcome: families.deliveries.labels(door, outcome) for outcome in OUTCOMES}
        self._seconds = families.delivery_time.labels(door)
        families.deliveries_in_flight.labels(door).set_function(lambda: self._in_flight)

    def started(self) -> None:
        """A request is on its way."""
        self._in_flight += 1

    def ended(self) -> None:
        """It has an outcome, or was given up."""
        self._in_flight -= 1

    def settled(self, outcome: str, seconds: float) -> None:
        """A delivery is over, as one of `OUTCOMES`, after so long."""
        self._outcomes[outcome].inc()
        self._seconds.observe(seconds * 1000)
