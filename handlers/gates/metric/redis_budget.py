"""`redis`: the budget is a number from 0 to 1 in a Redis key that another program writes."""

from __future__ import annotations

from dataclasses import dataclass

from handlers.gates.metric.reading_gate import FALLBACK, ReadingGate, ReadingParameters, Rule
from handlers.gates.parameters import parameter, real, string
from handlers.gates.sources import GateSources, MetricSample, SourceMissing


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisBudgetParameters(ReadingParameters):
    """Without `on_missing`, a missing key opens the gate and an unreachable Redis closes it."""

    address: str = parameter(string(), means="Redis that holds the key, `host:port` or a URL.")
    budget_key: str = parameter(
        string(),
        default="dispatch-gate-budget",
        means="Key that holds the budget, a number from 0 to 1; another program writes it.",
    )
    fallback: float = parameter(
        real(least=0, most=1),
        default=0.0,
        means="Budget without a reading, 0 to 1; `on_missing` takes precedence.",
    )


class RedisBudgetGate(ReadingGate):
    """Budget of the key, clamped to 0..1."""

    gate_type = "redis"

    def __init__(self, parameters: RedisBudgetParameters, sources: GateSources) -> None:
        store = sources.stores(parameters.address)

        async def read() -> MetricSample:
            found = await store.read_budget(parameters.budget_key)
            try:
                return MetricSample(None if found is None else float(found))
            except ValueError:
                raise SourceMissing("the key's value is not a number") from None

        super().__init__(
            sources.feeds.feed(
                ("redis", parameters.address, parameters.budget_key),
                read,
                name=f"redis {parameters.budget_key}",
            ),
            Rule(lambda value: min(1.0, value), threshold=0.0, full=1.0, fallback=parameters.fallback),
            parameters,
            log=sources.log,
            clock=sources.clock,
            label=parameters.budget_key,
            absent=1.0 if parameters.on_missing == FALLBACK else None,
        )
