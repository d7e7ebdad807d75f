"""`prometheus-budget`: what a pool of known size has left, from the first of three metrics that has a sample.

0  1 - requests queued in the router / (ready pods x max_concurrency)
1  1 - mean queue of a pod / max_concurrency
2  1 - requests running in vLLM / (ready pods x max_concurrency)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from handlers.gates.metric.feed import Feed, Sample
from handlers.gates.metric.prometheus import (
    POD_QUEUE_SIZE,
    QUEUE_SIZE,
    READY_PODS,
    either,
    instant_query,
    selector,
)
from handlers.gates.metric.prometheus_query import check_prometheus_url
from handlers.gates.metric.reading_gate import ReadingGate, ReadingParameters, Rule
from handlers.gates.parameters import number, parameter, text
from handlers.gates.sources import GateSources

_SOURCE_LABEL: Final = "budget_source"
_SOURCE_NAMES: Final = {"0": "router queue", "1": "queue per pod", "2": "vllm requests running"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PrometheusBudgetParameters(ReadingParameters):
    """`max_concurrency` is requests per pod; `baseline` is kept free; `fallback` is a budget (0: closed)."""

    pool: str = parameter(text(), means="Inference pool whose load is read.")
    namespace: str = parameter(
        text(may_be_empty=True), default="", means="Namespace of the pool; empty: any."
    )
    max_concurrency: float = parameter(
        number(above=0), default=100.0, means="Requests that one pod handles at a time."
    )
    baseline: float = parameter(
        number(least=0, below=1),
        default=0.05,
        means="Share of the pool that is kept free for real-time traffic, 0 to 1.",
    )
    fallback: float = parameter(
        number(least=0, most=1),
        default=0.0,
        means="Budget while there is no reading and `on_missing` does not say otherwise, 0 to 1.",
    )


class PrometheusBudgetGate(ReadingGate):
    """Publishes D - baseline; at an empty pool all slots may be used."""

    gate_type = "prometheus-budget"

    def __init__(self, parameters: PrometheusBudgetParameters, sources: GateSources) -> None:
        baseline = parameters.baseline
        self._closes_at_load_per_pod = parameters.max_concurrency * (1 - baseline)
        self._queries = budget_queries(parameters)
        super().__init__(
            _budget_feed(self._queries, sources, self.gate_type),
            Rule(
                lambda value: min(1.0, value) - baseline,
                threshold=baseline,
                full=1 - baseline,
                fallback=parameters.fallback,
            ),
            parameters,
            log=sources.log,
            clock=sources.clock,
            label=parameters.pool,
        )

    async def start(self) -> None:
        """Log each metric's query and the load per pod at which the gate closes, then read."""
        for source, query in self._queries.items():
            self._log.info(
                "gate metric source",
                gate=self.gate_type,
                pool=self._label,
                name=_SOURCE_NAMES[source],
                query=query,
            )
        self._log.info(
            "gate closing point",
            gate=self.gate_type,
            pool=self._label,
            closes_at_load_per_pod=self._closes_at_load_per_pod,
        )
        await super().start()


def budget_queries(parameters: PrometheusBudgetParameters) -> dict[str, str]:
    """The PromQL of each source, by its number."""
    by_inference_pool = selector(inference_pool=parameters.pool, namespace=parameters.namespace)
    by_name = selector(name=parameters.pool, namespace=parameters.namespace)
    ready = either(READY_PODS, lambda metric: f"max({metric}{by_name})")
    most = f"({ready} * {parameters.max_concurrency:g})"
    # A replica's own queues add up; of the replicas the fullest counts. `instance` is the replica.
    queued = either(QUEUE_SIZE, lambda metric: f"max(sum by (instance) ({metric}{by_inference_pool}))")
    per_pod = either(POD_QUEUE_SIZE, lambda metric: f"max(avg by (instance) ({metric}{by_name}))")
    running = f"sum(vllm:num_requests_running{by_inference_pool})"
    return {
        "0": f"1 - {queued} / {most}",
        "1": f"1 - {per_pod} / {parameters.max_concurrency:g}",
        "2": f"1 - {running} / {most}",
    }


def _budget_feed(queries: dict[str, str], sources: GateSources, gate_type: str) -> Feed[Sample]:
    """All sources in one query, so that they are of one instant; each sample says which it is."""
    check_prometheus_url(sources, gate_type)
    query = " or ".join(
        f'label_replace({one}, "{_SOURCE_LABEL}", "{source}", "", "")' for source, one in queries.items()
    )

    async def read() -> Sample:
        samples = await instant_query(sources.prometheus_http, sources.prometheus_url, query)
        # 0 / 0 ready pods is no number: that source says nothing, the next one may.
        values = {labels.get(_SOURCE_LABEL, ""): value for labels, value in samples if not math.isnan(value)}
        if not values:
            return Sample(None)
        first = min(values)
        return Sample(values[first], _SOURCE_NAMES.get(first, first))

    return sources.feeds.feed(("prometheus", "first", query), read, name=f"prometheus {query}")
