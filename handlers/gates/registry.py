"""Table of gate types: a new gate is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from handlers.contract.errors import InvalidSetting
from handlers.gates.aimd import AimdGate, AimdParameters
from handlers.gates.combinators.composite import CompositeGate, CompositeParameters
from handlers.gates.combinators.tier_priority import TierPriorityGate, TierPriorityParameters
from handlers.gates.combinators.wait_on_refuse import WaitOnRefuseGate, WaitOnRefuseParameters
from handlers.gates.combinators.wrapper import BuildInner, InnerGate
from handlers.gates.gate import Gate
from handlers.gates.metric.endpoint_scrape import (
    EndpointScrapeGate,
    EndpointScrapeParameters,
    endpoint_scrape_gate,
)
from handlers.gates.metric.prometheus import (
    PrometheusBudgetGate,
    PrometheusBudgetParameters,
    PrometheusQueryGate,
    PrometheusQueryParameters,
    PrometheusSaturationGate,
    PrometheusSaturationParameters,
)
from handlers.gates.metric.redis_budget import RedisBudgetGate, RedisBudgetParameters
from handlers.gates.parameters import parse_parameters
from handlers.gates.quota.leased_rate import LeasedRateGate, LeasedRateParameters
from handlers.gates.quota.local_concurrency import LocalConcurrencyGate, LocalConcurrencyParameters
from handlers.gates.quota.redis_quota import QuotaGate, QuotaParameters
from handlers.gates.sources import GateSources


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantParameters:
    """The gate has no parameters."""


class ConstantGate(Gate):
    """`constant`: always open, for a pool that only its slots limit."""

    gate_type = "constant"

    def __init__(self, parameters: ConstantParameters, sources: GateSources) -> None:
        """Ignore both arguments, which every gate takes."""


P = TypeVar("P")


@dataclass(frozen=True, slots=True)
class GateKind:
    """One gate type: its class, its parameters, and how to build it.

    `build` takes raw parameters, sources, and the path of the parameters in the settings, for errors.
    """

    gate: type[Gate]
    build: Callable[[Mapping[str, Any], GateSources, str], Gate]
    parameters: type[Any] = object


def _kind(gate: type[Gate], parameters: type[P], build: Callable[[P, GateSources], Gate]) -> GateKind:
    def from_raw(raw: Mapping[str, Any], sources: GateSources, setting: str) -> Gate:
        return build(parse_parameters(parameters, gate.gate_type, raw, setting), sources)

    return GateKind(gate, from_raw, parameters)


def _combinator(gate: type[Gate], parameters: type[P], build: Callable[[P, BuildInner], Gate]) -> GateKind:
    def from_raw(raw: Mapping[str, Any], sources: GateSources, setting: str) -> Gate:
        def build_inner(inner: InnerGate, type_path: str, params_path: str) -> Gate:
            kind = _kind_of(inner.gate_type, f"{setting}.{type_path}")
            return kind.build(inner.gate_params, sources, f"{setting}.{params_path}")

        return build(parse_parameters(parameters, gate.gate_type, raw, setting), build_inner)

    return GateKind(gate, from_raw, parameters)


GATES: Final[Mapping[str, GateKind]] = {
    kind.gate.gate_type: kind
    for kind in (
        _kind(AimdGate, AimdParameters, AimdGate),
        _combinator(CompositeGate, CompositeParameters, CompositeGate),
        _kind(ConstantGate, ConstantParameters, ConstantGate),
        _kind(EndpointScrapeGate, EndpointScrapeParameters, endpoint_scrape_gate),
        _kind(LeasedRateGate, LeasedRateParameters, LeasedRateGate),
        _kind(LocalConcurrencyGate, LocalConcurrencyParameters, LocalConcurrencyGate),
        _kind(PrometheusBudgetGate, PrometheusBudgetParameters, PrometheusBudgetGate),
        _kind(PrometheusQueryGate, PrometheusQueryParameters, PrometheusQueryGate),
        _kind(PrometheusSaturationGate, PrometheusSaturationParameters, PrometheusSaturationGate),
        _kind(QuotaGate, QuotaParameters, QuotaGate),
        _kind(RedisBudgetGate, RedisBudgetParameters, RedisBudgetGate),
        _combinator(TierPriorityGate, TierPriorityParameters, TierPriorityGate),
        _combinator(WaitOnRefuseGate, WaitOnRefuseParameters, WaitOnRefuseGate),
    )
}


def build_gate(gate_type: str, gate_params: Mapping[str, Any], sources: GateSources, setting: str) -> Gate:
    """Build a gate from settings; an empty type means `constant`. It reads nothing before `Gate.start`.

    `setting` is the path of the entry (`queues[0]`). Raises `InvalidSetting` with a path below it.
    """
    kind = _kind_of(gate_type or ConstantGate.gate_type, f"{setting}.gate_type")
    return kind.build(gate_params, sources, f"{setting}.gate_params")


def _kind_of(gate_type: str, setting: str) -> GateKind:
    kind = GATES.get(gate_type)
    if kind is None:
        known = ", ".join(sorted(GATES))
        raise InvalidSetting(setting, found=f"the unknown type {gate_type!r}", accepted=known)
    return kind
