"""`redis`: the budget is a number from 0 to 1 under a key that somebody else writes."""

from __future__ import annotations

from dataclasses import dataclass

from handlers.gates.metric.reading_gate import FALLBACK, ReadingGate, ReadingParameters, Rule
from handlers.gates.parameters import number, parameter, text
from handlers.gates.sources import GateSources, Sample, SourceMissing


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisBudgetParameters(ReadingParameters):
    """Without `on_missing`, a missing key opens the gate and an unreachable Redis closes it."""

    address: str = parameter(text(), means="Redis that holds the key, `host:port` or a URL.")
    budget_key: str = parameter(
        text(),
        default="dispatch-gate-budget",
        means="Key that holds the budget, a number from 0 to 1; somebody else writes it.",
    )
    fallback: float = parameter(
        number(least=0, most=1),
        default=0.0,
        means="Budget while there is no reading and `on_missing` does not say otherwise, 0 to 1.",
    )


class RedisBudgetGate(ReadingGate):
    """A budget written from outside, clamped to 0..1."""

    gate_type = "redis"

    def __init__(self, parameters: RedisBudgetParameters, sources: GateSources) -> None:
        store = sources.stores(parameters.address)

        async def read() -> Sample:
            found = await store.read_budget(parameters.budget_key)
            try:
                return Sample(None if found is None else float(found))
            except ValueError:
                raise SourceMissing("the key holds no number") from None

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
