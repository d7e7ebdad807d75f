"""What was counted since the last look, read off the metrics: counting for the status page costs a request nothing."""

from __future__ import annotations

from prometheus_client.metrics import MetricWrapperBase

from handlers.telemetry.families import Families


class ActivityCounts:
    """Differences of a process's counters, by queue name."""

    def __init__(self, metrics: Families) -> None:
        self._counters: dict[str, MetricWrapperBase] = {
            "success": metrics.successful,
            "failed": metrics.failed,
            "expired": metrics.exceeded,
            "retry": metrics.retries,
        }
        self._latency = metrics.latency
        self._seen: dict[tuple[str, str], int] = {}
        self._now: dict[tuple[str, str], int] = {}

    def look(self) -> dict[str, dict[str, int]]:
        """What came since the last `keep`: counts by queue and name, those that are not 0."""
        self._now = self._totals()
        counts: dict[str, dict[str, int]] = {}
        for (queue, name), total in self._now.items():
            if added := total - self._seen.get((queue, name), 0):
                counts.setdefault(queue, {})[name] = added
        return counts

    def keep(self) -> None:
        """What the last look found is recorded: the next one begins there."""
        self._seen = self._now

    def _totals(self) -> dict[tuple[str, str], int]:
        totals: dict[tuple[str, str], int] = {}
        for name, counter in self._counters.items():
            for sample in (one for metric in counter.collect() for one in metric.samples):
                if sample.name.endswith("_total"):
                    key = (sample.labels["queue_name"], name)
                    totals[key] = totals.get(key, 0) + int(sample.value)
        below: dict[str, int] = {}
        for sample in (one for metric in self._latency.collect() for one in metric.samples):
            if sample.name.endswith("_bucket"):
                # Cumulative, in order: the bucket's own number is what is above the one before.
                queue = sample.labels["queue_name"]
                bound = sample.labels["le"]
                own = int(sample.value) - below.get(queue, 0)
                below[queue] = 0 if bound == "+Inf" else int(sample.value)
                key = (queue, f"le:{bound}")
                totals[key] = totals.get(key, 0) + own
        return totals
