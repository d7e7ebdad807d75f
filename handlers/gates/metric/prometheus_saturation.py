"""`prometheus-saturation`: closed when the pool's saturation, as the router sees it, reaches a threshold."""

from __future__ import annotations

from dataclasses import dataclass

from handlers.gates.metric.prometheus import SATURATION, either, selector
from handlers.gates.metric.prometheus_query import query_feed
from handlers.gates.metric.reading_gate import ReadingGate, ReadingParameters, Rule
from handlers.gates.parameters import number, parameter, text
from handlers.gates.sources import GateSources


@dataclass(frozen=True, slots=True, kw_only=True)
class PrometheusSaturationParameters(ReadingParameters):
    """`fallback` is a saturation: the default 0 opens the gate while there is no value."""

    pool: str = parameter(text(), means="Inference pool whose saturation is read.")
    namespace: str = parameter(
        text(may_be_empty=True), default="", means="Namespace of the pool; empty: any."
    )
    threshold: float = parameter(
        number(above=0, most=1), default=0.8, means="Saturation from which the gate is closed, above 0 to 1."
    )
    fallback: float = parameter(
        number(least=0, most=1),
        default=0.0,
        means="Budget while there is no reading and `on_missing` does not say otherwise, 0 to 1.",
    )


class PrometheusSaturationGate(ReadingGate):
    """Publishes threshold - saturation; at saturation 0 the whole pool may be used."""

    gate_type = "prometheus-saturation"

    def __init__(self, parameters: PrometheusSaturationParameters, sources: GateSources) -> None:
        threshold = parameters.threshold
        wanted = selector(inference_pool=parameters.pool, namespace=parameters.namespace)
        query = either(SATURATION, lambda name: f"max({name}{wanted})")
        super().__init__(
            query_feed(query, sources, self.gate_type, least=False),
            Rule(
                lambda value: threshold - max(0.0, value),
                threshold=threshold,
                full=threshold,
                fallback=max(0.0, threshold - parameters.fallback),
            ),
            parameters,
            log=sources.log,
            clock=sources.clock,
            label=parameters.pool,
        )
