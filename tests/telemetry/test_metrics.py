"""Metrics: the reference's names and labels, our additions, and no series by untrusted input."""

from __future__ import annotations

import pytest

from handlers.telemetry.dependencies import GateState
from handlers.telemetry.families import DEADLINE_BOUNDS_SECONDS, METRIC_PREFIX
from handlers.telemetry.metrics import MOST_SHOWN_QUEUES, REASONS, Metrics, QueueMetrics
from tests.telemetry.exposition import page_of

OWNER = ("q1", "request-sortedset", "default")
QUEUE = dict(zip(("queue_id", "queue_name", "pool_name"), OWNER, strict=True))
POOL = {"queue_id": "", "queue_name": "", "pool_name": "default"}

# Type by name, as in the reference; those with the queue's three labels first.
OF_THE_REFERENCE = {
    "request_total": "counter",
    "successful_requests_total": "counter",
    "failed_requests_total": "counter",
    "shedded_requests_total": "counter",
    "exceeded_deadline_requests_total": "counter",
    "request_retries_total": "counter",
    "dispatched_requests_total": "counter",
    "gate_wait_requeues_total": "counter",
    "tokens_total": "counter",
    "gate_decisions_total": "counter",
    "message_latency_time_millis": "histogram",
    "inference_latency_time_millis": "histogram",
    "queue_residence_time_millis": "histogram",
    "deadline_proximity_millis": "histogram",
    "queue_depth": "gauge",
    "inflight_requests": "gauge",
    "broker_backlog": "gauge",
    "gate_waiting_requests": "gauge",
    "broker_backlog_source_available": "gauge",
    "pool_worker_limit": "gauge",
    "dispatch_budget": "gauge",
    "gate_metric_value": "gauge",
    "gate_metric_threshold": "gauge",
    "gate_metric_source_available": "gauge",
    "aimd_window": "gauge",
    "aimd_ssthresh": "gauge",
    "aimd_inflight": "gauge",
}
REFERENCE_BOUNDS_MS: dict[str, list[float]] = {
    "message_latency_time_millis": [100, 1e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6],
    "inference_latency_time_millis": [10, 25, 50, 100, 250, 500, 1e3, 2500, 5e3, 1e4, 3e4, 6e4, 12e4],
    "queue_residence_time_millis": [
        500,
        1e3,
        2e3,
        5e3,
        1e4,
        3e4,
        6e4,
        12e4,
        3e5,
        6e5,
        18e5,
        36e5,
        72e5,
        216e5,
        864e5,
    ],
    "deadline_proximity_millis": [1000 * bound for bound in DEADLINE_BOUNDS_SECONDS],
}


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def queue(metrics: Metrics) -> QueueMetrics:
    return metrics.of_queue(*OWNER)


def test_every_metric_of_the_reference_exists_with_its_type_and_labels(metrics: Metrics, queue: QueueMetrics) -> None:
    queue.deadlines([0] * len(DEADLINE_BOUNDS_SECONDS), 0)
    queue.depth(0, 0, 0, 0, 0.0)
    metrics.pool("default", 64, 1.0)
    metrics.watch_gate(*OWNER, lambda: SATURATION)
    metrics.watch_gate("", "", "default", lambda: AIMD)
    page = page_of(metrics)
    assert {name: page.types.get(f"{METRIC_PREFIX}_{name}") for name in OF_THE_REFERENCE} == OF_THE_REFERENCE
    extra: dict[str, set[str]] = {
        "tokens_total": {"direction"},
        "gate_decisions_total": {"reason"},
        "broker_backlog": {"model_name"},
        "gate_metric_value": {"inference_pool"},
        "gate_metric_threshold": {"inference_pool"},
        "gate_metric_source_available": {"inference_pool"},
    }
    own: dict[str, set[str]] = {
        "pool_worker_limit": {"pool_name"},
        "gate_waiting_requests": {"pool_name"},
        "aimd_window": {"pool_name", "band"},
        "aimd_ssthresh": {"pool_name", "band"},
        "aimd_inflight": {"pool_name", "band"},
    }
    for name, kind in OF_THE_REFERENCE.items():
        found = list(page.labels(name + "_count" if kind == "histogram" else name))
        assert found, name
        expected = own[name] if name in own else {*QUEUE, *extra.get(name, set())}
        assert {frozenset(labels) for labels in found} == {frozenset(expected)}, name


@pytest.mark.parametrize("name", REFERENCE_BOUNDS_MS)
def test_the_reference_s_bounds_are_among_ours(metrics: Metrics, queue: QueueMetrics, name: str) -> None:
    queue.deadlines([0] * len(DEADLINE_BOUNDS_SECONDS), 0)
    found = {float(labels["le"]) for labels in page_of(metrics).labels(f"{name}_bucket")}
    assert set(REFERENCE_BOUNDS_MS[name]) - found == set()


def test_counters_begin_at_zero_so_that_the_first_event_is_seen(metrics: Metrics, queue: QueueMetrics) -> None:
    page = page_of(metrics)
    reasons = ("gate_closed", "quota_exhausted", "dropped", "error")
    assert [page.value("gate_decisions_total", **QUEUE, reason=reason) for reason in reasons] == [0] * 4
    assert page.value("successful_requests_total", **QUEUE) == 0
    assert not any("created" in name for name, _ in page.samples)


def test_every_step_of_a_request_is_counted(metrics: Metrics, queue: QueueMetrics) -> None:
    queue.started(0, 1.5)
    assert page_of(metrics).value("queue_depth", **QUEUE) == 1
    began_at = queue.sending()
    assert page_of(metrics).value("queue_depth", **QUEUE) == 0
    assert page_of(metrics).value("inflight_requests", **QUEUE) == 1
    queue.sent(began_at)
    queue.ended()
    queue.retried("rejected")
    queue.started(1, 4.0)
    queue.sent(queue.sending())
    queue.ended()
    queue.answered(200, "", 1)
    queue.used('{"usage": {"prompt_tokens": 7, "completion_tokens": 11}}')
    queue.timed(5.0, 55.0)
    queue.published(0.002)
    page = page_of(metrics)
    expected = {
        "request_total": 1,
        "dispatched_requests_total": 2,
        "request_retries_total": 1,
        "shedded_requests_total": 1,
        "successful_requests_total": 1,
        "failed_requests_total": 0,
        "inflight_requests": 0,
        "queue_depth": 0,
        "queue_residence_time_millis_sum": 5_500,
        "inference_latency_time_millis_count": 2,
        "message_latency_time_millis_sum": 5_000,
        "deadline_left_millis_sum": 55_000,
        "attempts_per_request_sum": 2,
        "result_publish_time_millis_count": 1,
    }
    assert {name: page.value(name, **QUEUE) for name in expected} == expected
    assert page.value("tokens_total", **QUEUE, direction="input") == 7
    assert page.value("tokens_total", **QUEUE, direction="output") == 11
    assert page.value("nacks_total", **QUEUE, reason="rejected") == 1


def test_a_request_held_by_the_circuit_breaker_is_not_a_retry(metrics: Metrics, queue: QueueMetrics) -> None:
    queue.retried("circuit_open")
    page = page_of(metrics)
    assert page.value("request_retries_total", **QUEUE) == 0
    assert page.value("nacks_total", **QUEUE, reason="circuit_open") == 1


def test_the_number_of_open_circuits_is_read_at_each_scrape(metrics: Metrics) -> None:
    circuits = [1]
    metrics.watch_circuits(lambda: sum(circuits))
    assert page_of(metrics).value("open_circuits") == 1
    circuits.append(2)
    assert page_of(metrics).value("open_circuits") == 3


def test_a_refusal_by_a_gate_is_not_a_retry(metrics: Metrics, queue: QueueMetrics) -> None:
    queue.retried("gate_closed")
    queue.retried("quota_exhausted")
    queue.answered(0, "GATE_DROPPED", 0)
    queue.answered(0, "GATE_ERROR", 0)
    page = page_of(metrics)
    assert page.value("request_retries_total", **QUEUE) == 0
    assert page.value("gate_wait_requeues_total", **QUEUE) == 2
    counted = {
        labels["reason"]: page.value("gate_decisions_total", **labels) for labels in page.labels("gate_decisions_total")
    }
    assert counted == {"gate_closed": 1, "quota_exhausted": 1, "dropped": 1, "error": 1}


@pytest.mark.parametrize(
    ("status_code", "error_code", "name"),
    [
        (200, "", "successful_requests_total"),
        (404, "", "failed_requests_total"),
        (429, "", "failed_requests_total"),
        (0, "DEADLINE_EXCEEDED", "exceeded_deadline_requests_total"),
        (0, "INVALID_REQUEST", "failed_requests_total"),
    ],
)
def test_a_final_result_counts_once(
    metrics: Metrics, queue: QueueMetrics, status_code: int, error_code: str, name: str
) -> None:
    queue.answered(status_code, error_code, 0)
    page = page_of(metrics)
    finals = ("successful_requests_total", "failed_requests_total", "exceeded_deadline_requests_total")
    assert {final for final in finals if page.value(final, **QUEUE)} == {name}


def test_leases_reclaims_and_dead_letters_are_counted(metrics: Metrics, queue: QueueMetrics) -> None:
    queue.renewed(10, 1)
    queue.reclaimed(3)
    queue.dead_lettered(2)
    page = page_of(metrics)
    assert page.value("lease_renewals_total", **QUEUE) == 10
    assert page.value("lease_losses_total", **QUEUE) == 1
    assert page.value("reclaimed_requests_total", **QUEUE) == 3
    assert page.value("dead_letters_total", **QUEUE) == 2


def test_depth_gauges_show_the_last_read_and_whether_it_is_current(metrics: Metrics, queue: QueueMetrics) -> None:
    queue.depth(12, 3, 4, 1, 30.0, oldest_age_seconds=90.0)
    queue.depth_unknown()
    page = page_of(metrics)
    assert page.value("broker_backlog", **QUEUE, model_name="") == 12
    assert page.value("claimed_requests", **QUEUE) == 3
    assert page.value("waiting_retries") == 4
    assert page.value("dead_letters_kept", **QUEUE) == 1
    assert page.value("earliest_deadline_seconds", **QUEUE) == 30
    assert page.value("oldest_pending_age_seconds", **QUEUE) == 90
    assert page.value("broker_backlog_source_available", **QUEUE) == 0


def test_the_backlog_carries_the_model_that_the_queue_is_labelled_with(metrics: Metrics) -> None:
    """The autoscaler selects it by `model_name`; other series keep the reference's three labels."""
    labels = {"queue_id": "q2", "queue_name": "q2", "pool_name": "default"}
    metrics.of_queue("q2", "q2", "default", model_name="llama").depth(7, 0, 0, 0, 0.0)
    page = page_of(metrics)
    assert page.value("broker_backlog", **labels, model_name="llama") == 7
    assert page.value("claimed_requests", **labels) == 0


def test_a_pool_reports_the_requests_that_wait_at_its_gates(metrics: Metrics) -> None:
    metrics.pool("default", 8, 0.0, 5)
    assert page_of(metrics).value("gate_waiting_requests", pool_name="default") == 5
    metrics.pool("default", 8, 1.0)
    assert page_of(metrics).value("gate_waiting_requests", pool_name="default") == 0


def test_deadline_proximity_is_the_last_snapshot_and_exact(metrics: Metrics, queue: QueueMetrics) -> None:
    queue.deadlines([9] * len(DEADLINE_BOUNDS_SECONDS), 9)
    queue.deadlines([2, 2, 5, *[5] * (len(DEADLINE_BOUNDS_SECONDS) - 4), 6], 10)
    page = page_of(metrics)
    buckets = {
        float(labels["le"]): page.value("deadline_proximity_millis_bucket", **labels)
        for labels in page.labels("deadline_proximity_millis_bucket")
    }
    assert [buckets[0], buckets[1_000], buckets[5_000], buckets[86_400_000], buckets[float("inf")]] == [
        2,
        2,
        5,
        6,
        10,
    ]
    assert page.value("deadline_proximity_millis_count", **QUEUE) == 10
    # 3 between 1 and 5 s, 1 between 6 and 24 h, 4 later.
    assert page.value("deadline_proximity_millis_sum", **QUEUE) == 1000 * (3 * 3 + 54_000 + 4 * 86_400)


def test_counts_of_a_queue_that_moves_meanwhile_never_fall(metrics: Metrics, queue: QueueMetrics) -> None:
    queue.deadlines([4, 3, *[2] * (len(DEADLINE_BOUNDS_SECONDS) - 2)], 1)
    page = page_of(metrics)
    assert {
        page.value("deadline_proximity_millis_bucket", **labels)
        for labels in page.labels("deadline_proximity_millis_bucket")
    } == {4}


def test_counts_for_other_bounds_are_refused(queue: QueueMetrics) -> None:
    with pytest.raises(ValueError, match=r"expected 14 \(one for each deadline bound\), got 3"):
        queue.deadlines([1, 2, 3], 3)


def test_untrusted_input_creates_no_series(metrics: Metrics, queue: QueueMetrics) -> None:
    """F78: reasons, subscriptions and peers that are not configured."""
    count = MOST_SHOWN_QUEUES + 100
    for number in range(count):
        metrics.of_queue(f"s{number}", f"s{number}", "default").retried(f"reason {number}")
    for number in range(100):
        metrics.refused(400 + number)
        metrics.watch_connections(f"host{number}", lambda: 1)
    page = page_of(metrics, "nacks_total", "refused_callers_total", "connections_in_use")
    counted = list(page.labels("nacks_total"))
    assert len(counted) == (MOST_SHOWN_QUEUES + 1) * (len(REASONS) + 1)
    assert {labels["reason"] for labels in counted} == REASONS | {"other"}
    others = dict.fromkeys(QUEUE, "other")
    # One of the queues is the fixture's.
    assert page.value("nacks_total", **others, reason="other") == count - (MOST_SHOWN_QUEUES - 1)
    assert {labels["status"] for labels in page.labels("refused_callers_total")} == {"401", "403", "other"}
    assert [labels["peer"] for labels in page.labels("connections_in_use")] == ["other"]


def test_a_queue_that_is_asked_for_again_is_the_same(metrics: Metrics, queue: QueueMetrics) -> None:
    assert metrics.of_queue(*OWNER) is queue


SATURATION = GateState("prometheus-saturation", budget=0.3, value=0.5, threshold=0.8, label="pool-a")
MISSING = GateState(
    "prometheus-budget",
    budget=0.0,
    value=None,
    threshold=0.05,
    is_source_available=False,
    on_missing="closed",
    why_closed="source missing",
    label="pool-a",
)
AIMD = GateState(
    "aimd",
    inner=(
        GateState(
            "aimd",
            label="reserved-interactive",
            figures={"aimd_window": 8.0, "aimd_ssthresh": 16.0, "aimd_inflight": 3.0},
        ),
    ),
)


def test_a_gate_s_reading_is_shown_as_the_reference_shows_it(metrics: Metrics) -> None:
    metrics.watch_gate(*OWNER, lambda: SATURATION)
    page = page_of(metrics)
    gate = {**QUEUE, "inference_pool": "pool-a"}
    assert page.value("gate_metric_value", **gate) == pytest.approx(0.5)
    assert page.value("gate_metric_threshold", **gate) == pytest.approx(0.2)
    assert page.value("gate_metric_source_available", **gate) == 1
    assert page.value("dispatch_budget", **QUEUE) == pytest.approx(0.3)
    assert page.value("gate_closed", **QUEUE, gate_type="prometheus-saturation") == 0


def test_the_rule_that_replaces_a_reading_is_shown_until_the_reading_is_back(metrics: Metrics) -> None:
    now = [MISSING]
    metrics.watch_gate(*OWNER, lambda: now[0])
    gate = {**QUEUE, "inference_pool": "pool-a"}
    page = page_of(metrics)
    assert page.value("gate_on_missing_in_force", **gate, rule="closed") == 1
    assert page.value("gate_metric_source_available", **gate) == 0
    assert page.value("gate_metric_value", **gate) is None
    assert page.value("gate_closed", **QUEUE, gate_type="prometheus-budget") == 1
    now[0] = SATURATION
    page = page_of(metrics)
    assert list(page.labels("gate_on_missing_in_force")) == []
    assert page.value("gate_closed", **QUEUE, gate_type="prometheus-budget") is None


def test_a_gate_whose_budget_is_0_is_closed(metrics: Metrics) -> None:
    metrics.watch_gate(*OWNER, lambda: GateState("foreign", budget=0.0))
    assert page_of(metrics).value("gate_closed", **QUEUE, gate_type="foreign") == 1


def test_the_gate_with_the_lower_budget_is_shown_for_a_pool(metrics: Metrics) -> None:
    both = GateState("composite", budget=0.0, inner=(MISSING, SATURATION))
    metrics.watch_gate(*OWNER, lambda: both)
    gate = {**QUEUE, "inference_pool": "pool-a"}
    assert page_of(metrics).value("gate_metric_threshold", **gate) == pytest.approx(0.05)


def test_the_windows_of_an_aimd_gate_are_shown_by_band(metrics: Metrics) -> None:
    metrics.watch_gate("", "", "default", lambda: AIMD)
    page = page_of(metrics)
    band = {"pool_name": "default", "band": "reserved-interactive"}
    assert [page.value(name, **band) for name in ("aimd_window", "aimd_ssthresh", "aimd_inflight")] == [
        8,
        16,
        3,
    ]


def test_a_pool_s_budget_has_no_queue(metrics: Metrics) -> None:
    metrics.pool("default", 64, 0.25)
    page = page_of(metrics)
    assert page.value("pool_worker_limit", pool_name="default") == 64
    assert page.value("dispatch_budget", **POOL) == 0.25


def test_a_gauge_that_cannot_be_read_hides_no_other(metrics: Metrics, queue: QueueMetrics) -> None:
    def broken() -> None:
        raise RuntimeError("gone")

    metrics.watch(broken)
    metrics.watch_connections("gateway", lambda: 5)
    queue.reclaimed(1)
    assert page_of(metrics).value("reclaimed_requests_total", **QUEUE) == 1
    assert page_of(metrics).value("connections_in_use", peer="gateway") == 5


def test_the_connections_of_a_new_channel_replace_those_of_the_old_one(metrics: Metrics) -> None:
    metrics.watch_connections("pubsub", lambda: 5)
    metrics.watch_connections("pubsub", lambda: 2)
    assert page_of(metrics).value("connections_in_use", peer="pubsub") == 2


def test_readiness_is_a_gauge(metrics: Metrics) -> None:
    is_ready = [True]
    metrics.watch_ready(lambda: is_ready[0])
    assert page_of(metrics).value("ready") == 1
    is_ready[0] = False
    assert page_of(metrics).value("ready") == 0


def test_the_process_itself_is_shown(metrics: Metrics) -> None:
    assert b"process_cpu_seconds_total" in metrics.render()


def test_two_metrics_objects_are_independent(metrics: Metrics, queue: QueueMetrics) -> None:
    queue.reclaimed(1)
    other = Metrics()
    other.of_queue(*OWNER)
    assert page_of(other).value("reclaimed_requests_total", **QUEUE) == 0
