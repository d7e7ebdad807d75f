"""Generates docs/metrics.md from an exposition that has every series.

python -m tests.telemetry.metrics_page > docs/metrics.md
"""

from __future__ import annotations

import sys

from prometheus_client.parser import text_string_to_metric_families

from handlers.telemetry.dependencies import GATEWAY, Dependencies, GateState
from handlers.telemetry.families import DEADLINE_BOUNDS_SECONDS, METRIC_PREFIX
from handlers.telemetry.metrics import DoorMetrics, Metrics

OWNER = ("q", "request-sortedset", "default")

# The reference's metrics; the rest is ours.
OF_THE_REFERENCE = frozenset(
    {
        *("request_total", "successful_requests_total", "failed_requests_total", "shedded_requests_total"),
        *("exceeded_deadline_requests_total", "request_retries_total", "tokens_total"),
        *("gate_decisions_total", "dispatched_requests_total", "gate_wait_requeues_total"),
        *("message_latency_time_millis", "inference_latency_time_millis", "queue_residence_time_millis"),
        *("deadline_proximity_millis", "queue_depth", "inflight_requests", "broker_backlog"),
        *("pool_worker_limit", "dispatch_budget", "gate_metric_value", "gate_metric_threshold"),
        *("gate_metric_source_available", "broker_backlog_source_available"),
        "gate_waiting_requests",
        *("aimd_window", "aimd_ssthresh", "aimd_inflight"),
    }
)

_HEAD = f"""\
# Metrics

```sh
curl http://localhost:9090/metrics                                              # a poller, on METRICS_PORT
curl -H "Authorization: Bearer $METRICS_TOKEN" http://localhost:8080/metrics    # a handler, on PORT
```

Without `METRICS_TOKEN`, a handler's page is disabled. [monitoring/](../monitoring) has a dashboard and alert rules.

All names have the prefix `{METRIC_PREFIX}_`. Metrics marked with a dot have the names, labels and meanings of
`llm-d-async`, so that its dashboards work; their buckets include those of `llm-d-async`. Counters start at 0 when
the process starts; gauges of gates appear with the gate.

**Sums.** The poller counts the requests of its queues, with or without a separate handler. A handler counts pushes
(`queue_id` is the subscription), events of other sources (`events`), and its own deliveries. So you can add up
counters over all pods. Some gauges are read from Redis, so all pollers have the same value: `broker_backlog`,
`claimed_requests`, `waiting_retries`, `dead_letters_kept`, `deadline_proximity_millis` and the ages. For these, use
`max by (queue_id)`.

**Labels.** Label values come from settings or fixed sets, never from requests. After 500 queues or subscriptions,
further ones are counted as `other`.

**Autoscaler.** `broker_backlog` has the queue's label `model_name` (`"labels": {{"model_name": "llama"}}` of the
queue in `CONFIG_FILE`), or an empty one. To scale the servers of a model, use
`sum(max by (queue_id) (llm_d_async_async_broker_backlog{{model_name="llama"}}))`.

**Snapshot.** `deadline_proximity_millis` has exact counts, updated every 5 s. Use its buckets directly, without
`rate`.

<!-- Made by `python -m tests.telemetry.metrics_page`; change handlers/telemetry/families.py instead. -->

| metric | | kind | labels | what it is |
|---|---|---|---|---|
"""


def populated() -> Metrics:
    """Metrics with a sample of every family."""
    metrics = Metrics()
    queue = metrics.of_queue(*OWNER)
    queue.deadlines([0] * len(DEADLINE_BOUNDS_SECONDS), 0)
    queue.depth(0, 0, 0, 0, 0.0, oldest_age_seconds=0.0)
    metrics.pool("default", 64, 1.0)
    metrics.refused(401)
    metrics.watch_connections("gateway", lambda: 0)
    metrics.watch_circuits(lambda: 0)
    metrics.watch_ready(lambda: True)
    dependencies = Dependencies()
    dependencies.add(GATEWAY)
    metrics.watch_dependencies(dependencies)
    DoorMetrics(metrics, "dispatch")
    figures = {"aimd_window": 8.0, "aimd_ssthresh": 16.0, "aimd_inflight": 3.0}
    band = GateState("aimd", label="reserved-interactive", figures=figures)
    counting = GateState("redis-quota", figures={"in_use": 1.0})
    reading = GateState("prometheus-saturation", value=0.5, threshold=0.8, label="pool-a", on_missing="open")
    metrics.watch_gate("", "", "default", lambda: GateState("aimd", inner=(band,)))
    metrics.watch_gate(*OWNER, lambda: GateState("composite", inner=(reading, counting)))
    return metrics


def labels_by_name() -> dict[str, tuple[str, str, list[str]]]:
    """Kind, description and labels of every metric, by name without the prefix."""
    found: dict[str, tuple[str, str, list[str]]] = {}
    for family in text_string_to_metric_families(populated().render().decode()):
        if not family.name.startswith(METRIC_PREFIX):
            continue
        name = family.name.removeprefix(f"{METRIC_PREFIX}_") + ("_total" if family.type == "counter" else "")
        labels = dict.fromkeys(name for sample in family.samples for name in sample.labels)
        found[name] = family.type, family.documentation, [name for name in labels if name != "le"]
    return found


def metrics_page() -> str:
    """The page as Markdown; the reference's metrics come first."""
    rows = sorted(labels_by_name().items(), key=lambda row: (row[0] not in OF_THE_REFERENCE, row[0]))
    lines = [
        f"| `{name}` | {'•' if name in OF_THE_REFERENCE else ''} | {kind} "
        f"| {', '.join(f'`{label}`' for label in labels)} | {text} |"
        for name, (kind, text, labels) in rows
    ]
    return _HEAD + "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(metrics_page())
