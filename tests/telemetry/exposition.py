"""A page of metrics, read back as Prometheus would."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from handlers.telemetry.families import METRIC_PREFIX
from handlers.telemetry.metrics import Metrics


@dataclass(slots=True)
class Page:
    """The exposition, read back as Prometheus would."""

    types: dict[str, str] = field(default_factory=dict)
    samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = field(default_factory=dict)

    def value(self, name: str, **labels: str) -> float | None:
        return self.samples.get((f"{METRIC_PREFIX}_{name}", frozenset(labels.items())))

    def labels(self, name: str) -> Iterator[dict[str, str]]:
        return (dict(labels) for sample, labels in self.samples if sample == f"{METRIC_PREFIX}_{name}")


def page_of(metrics: Metrics, *names: str) -> Page:
    """The page, or only these metrics of it: reading the samples of 500 queues takes seconds."""
    page = Page()
    lines = metrics.render().decode().splitlines(keepends=True)
    wanted = tuple(f"{METRIC_PREFIX}_{name}" for name in names) or ""
    text = "".join(line for line in lines if line.removeprefix("# TYPE ").startswith(wanted))
    for family in text_string_to_metric_families(text):
        suffix = "_total" if family.type == "counter" else ""
        page.types[family.name + suffix] = family.type
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in page.samples, "Prometheus refuses a page that names a series twice"
            page.samples[key] = sample.value
    return page
