"""`redis`: the budget is a number in a Redis key. Another program writes it."""

from __future__ import annotations

from typing import Annotated

from handlers.contract.accepted import about
from handlers.gates.metric.reading_gate import FALLBACK, ReadingGate, ReadingParameters, Rule
from handlers.gates.parameters import Text
from handlers.gates.sources import GateSources, MetricSample, SourceMissing
from handlers.number_text import decimal


class RedisBudgetParameters(ReadingParameters, frozen=True, kw_only=True):
    """Parameters of `redis`."""

    address: Annotated[Text, about("Redis that holds the key, `host:port` or a URL.")]
    budget_key: Annotated[
        Text, about("Key that holds the budget, a number from 0 to 1; another program writes it.")
    ] = "dispatch-gate-budget"
    fallback: Annotated[
        float,
        about(
            "With `on_missing: fallback`: budget while Redis is unreachable, 0 to 1; if only the key is "
            "missing, the gate is open. Other values of `on_missing` apply in both cases.",
            ge=0,
            le=1,
        ),
    ] = 0.0


class RedisBudgetGate(ReadingGate):
    """Publishes the key's number, clamped to 0..1."""

    gate_type = "redis"

    def __init__(self, parameters: RedisBudgetParameters, sources: GateSources) -> None:
        store = sources.stores(parameters.address)

        async def read() -> MetricSample:
            found = await store.read_budget(parameters.budget_key)
            budget = decimal(found)
            if found is not None and budget is None:
                raise SourceMissing("the key's value is not a number")
            return MetricSample(budget)

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
