"""`prometheus-query`: the value of a query is the budget, clamped to 0..1.

Also what the other Prometheus gates share: a URL must be set.
"""

from __future__ import annotations

from dataclasses import dataclass

from handlers.contract.errors import InvalidSetting
from handlers.gates.metric.feed import Feed, Sample
from handlers.gates.metric.prometheus import instant_query
from handlers.gates.metric.reading_gate import ReadingGate, ReadingParameters, Rule
from handlers.gates.parameters import number, parameter, text
from handlers.gates.sources import GateSources


@dataclass(frozen=True, slots=True, kw_only=True)
class PrometheusQueryParameters(ReadingParameters):
    """`pool` is a label for people; `fallback` the budget while there is no value."""

    query: str = parameter(text(), means="PromQL query whose smallest sample, cut to 0..1, is the budget.")
    pool: str = parameter(
        text(may_be_empty=True),
        default="",
        means="Inference pool, for logs and metrics; it does not change the query.",
    )
    fallback: float = parameter(
        number(least=0, most=1),
        default=0.0,
        means="Budget while there is no reading and `on_missing` does not say otherwise, 0 to 1.",
    )


class PrometheusQueryGate(ReadingGate):
    """A budget that somebody computes in PromQL. Of several samples the least counts."""

    gate_type = "prometheus-query"

    def __init__(self, parameters: PrometheusQueryParameters, sources: GateSources) -> None:
        super().__init__(
            query_feed(parameters.query, sources, self.gate_type, least=True),
            Rule(lambda value: min(1.0, value), threshold=0.0, full=1.0, fallback=parameters.fallback),
            parameters,
            log=sources.log,
            clock=sources.clock,
            label=parameters.pool,
        )


def query_feed(query: str, sources: GateSources, gate_type: str, *, least: bool) -> Feed[Sample]:
    """The feed of a query: its least or its largest sample. One for all gates that ask the same."""
    check_prometheus_url(sources, gate_type)

    async def read() -> Sample:
        samples = [
            value for _, value in await instant_query(sources.prometheus_http, sources.prometheus_url, query)
        ]
        if not samples:
            return Sample(None)
        return Sample(min(samples) if least else max(samples))

    return sources.feeds.feed(
        ("prometheus", "least" if least else "largest", query), read, name=f"prometheus {query}"
    )


def check_prometheus_url(sources: GateSources, gate_type: str) -> None:
    """Raises `InvalidSetting` where no Prometheus is configured."""
    if not sources.prometheus_url:
        raise InvalidSetting(
            "PROMETHEUS_URL", found="nothing", accepted=f"the address of a Prometheus server, for {gate_type}"
        )
