"""The table of gate types, and gates that other packages register."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final, TypeVar

import msgspec

from handlers.contract.accepted import nearest
from handlers.contract.errors import InvalidSetting
from handlers.contract.masked_text import shown_value
from handlers.gates.aimd import AimdGate, AimdParameters
from handlers.gates.combinators import (
    BuildInner,
    CompositeGate,
    CompositeParameters,
    InnerGate,
    TierPriorityGate,
    TierPriorityParameters,
    WaitOnRefuseGate,
    WaitOnRefuseParameters,
)
from handlers.gates.gate import Gate
from handlers.gates.guarded import GuardedGate
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

GATE_ENTRY_POINTS: Final = "async_processor.gates"
"""Group of entry points. Each name is a gate type, each object a `GateKind`."""


class ConstantParameters(msgspec.Struct, frozen=True, kw_only=True):
    """No parameters."""


class ConstantGate(Gate):
    """`constant`: always open, so that only the slots limit the pool."""

    gate_type = "constant"

    def __init__(self, parameters: ConstantParameters, sources: GateSources) -> None:
        """Ignore both arguments; every gate is built with them."""


P = TypeVar("P", bound=msgspec.Struct)


class GateKind(msgspec.Struct, frozen=True):
    """One gate type: its class, its parameters, and how to build it.

    `build` takes the raw parameters, the sources, and the name of the parameters' setting, which errors show.
    """

    gate: type[Gate]
    build: Callable[[Mapping[str, Any], GateSources, str], Gate]
    parameters: type[msgspec.Struct]


def gate_kind(gate: type[Gate], parameters: type[P], build: Callable[[P, GateSources], Gate]) -> GateKind:
    """A gate type whose `build` (usually the class) takes parameters and sources."""

    def from_raw(raw: Mapping[str, Any], sources: GateSources, setting: str) -> Gate:
        return build(parse_parameters(parameters, gate.gate_type, raw, setting), sources)

    return GateKind(gate, from_raw, parameters)


def combinator_kind(gate: type[Gate], parameters: type[P], build: Callable[[P, BuildInner], Gate]) -> GateKind:
    """A gate type whose `build` takes parameters and builds inner gates."""

    def from_raw(raw: Mapping[str, Any], sources: GateSources, setting: str) -> Gate:
        def build_inner(inner: InnerGate, type_path: str, params_path: str) -> Gate:
            kind = _kind_of(inner.gate_type, f"{setting}.{type_path}")
            return kind.build(inner.gate_params, sources, f"{setting}.{params_path}")

        return build(parse_parameters(parameters, gate.gate_type, raw, setting), build_inner)

    return GateKind(gate, from_raw, parameters)


GATE_KINDS: Final[Mapping[str, GateKind]] = {
    kind.gate.gate_type: kind
    for kind in (
        gate_kind(AimdGate, AimdParameters, AimdGate),
        combinator_kind(CompositeGate, CompositeParameters, CompositeGate),
        gate_kind(ConstantGate, ConstantParameters, ConstantGate),
        gate_kind(EndpointScrapeGate, EndpointScrapeParameters, endpoint_scrape_gate),
        gate_kind(LeasedRateGate, LeasedRateParameters, LeasedRateGate),
        gate_kind(LocalConcurrencyGate, LocalConcurrencyParameters, LocalConcurrencyGate),
        gate_kind(PrometheusBudgetGate, PrometheusBudgetParameters, PrometheusBudgetGate),
        gate_kind(PrometheusQueryGate, PrometheusQueryParameters, PrometheusQueryGate),
        gate_kind(PrometheusSaturationGate, PrometheusSaturationParameters, PrometheusSaturationGate),
        gate_kind(QuotaGate, QuotaParameters, QuotaGate),
        gate_kind(RedisBudgetGate, RedisBudgetParameters, RedisBudgetGate),
        combinator_kind(TierPriorityGate, TierPriorityParameters, TierPriorityGate),
        combinator_kind(WaitOnRefuseGate, WaitOnRefuseParameters, WaitOnRefuseGate),
    )
}


def build_gate(gate_type: str, gate_params: Mapping[str, Any], sources: GateSources, setting: str) -> Gate:
    """Build a gate from settings. An empty type means `constant`.

    The gate reads nothing before `Gate.start`. `setting` is the path of the entry (`queues[0]`). Raises
    `InvalidSetting` with a path below it, also for a type that two packages provide.
    """
    kind = _kind_of(gate_type, f"{setting}.gate_type") if gate_type else GATE_KINDS[ConstantGate.gate_type]
    return kind.build(gate_params, sources, f"{setting}.gate_params")


def _kind_of(gate_type: str, setting: str) -> GateKind:
    installed = installed_gates()
    if gate_type in GATE_KINDS and gate_type not in installed:
        return GATE_KINDS[gate_type]
    points = installed.get(gate_type, ())
    if not points:
        known = sorted({*GATE_KINDS, *installed})
        close = nearest(gate_type, known)
        hint = f" (did you mean {close}?)" if close else ""
        raise InvalidSetting(
            setting,
            found=f"the unknown type {shown_value(gate_type)}{hint}",
            accepted=f"one of {', '.join(known)}, or a type that a package registers (no installed package does)",
        )
    packages = [point.dist.name if point.dist else point.value for point in points]
    if gate_type in GATE_KINDS or len(points) > 1:
        also = "a built-in gate" if gate_type in GATE_KINDS else packages.pop()
        raise InvalidSetting(
            setting,
            found=f"{shown_value(gate_type)}, which both {also} and {', '.join(packages)} provide",
            accepted="a name that only one package provides",
        )
    return _loaded(points[0], packages[0], setting)


@cache
def installed_gates() -> Mapping[str, tuple[EntryPoint, ...]]:
    """Entry points of `GATE_ENTRY_POINTS` by gate type. It imports none of them."""
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for point in entry_points(group=GATE_ENTRY_POINTS):
        found[point.name] = (*found.get(point.name, ()), point)
    return found


def _loaded(point: EntryPoint, package: str, setting: str) -> GateKind:
    try:
        kind = point.load()
    except Exception as error:
        raise InvalidSetting(
            setting,
            found=f"{shown_value(point.name)} of {package}, whose import failed with {type(error).__name__}: {error}",
            accepted="a gate that can be imported",
        ) from error
    if not isinstance(kind, GateKind) or kind.gate.gate_type != point.name:
        raise InvalidSetting(
            setting,
            found=f"{shown_value(point.name)} of {package}, whose {point.value} is not one",
            accepted=f"a GateKind with the gate_type {point.name!r}",
        )
    return msgspec.structs.replace(kind, build=_guarded(kind))


def _guarded(kind: GateKind) -> Callable[[Mapping[str, Any], GateSources, str], Gate]:
    """The `build` of a package's gate; its errors become `InvalidSetting`, and the gate is guarded."""

    def build(raw: Mapping[str, Any], sources: GateSources, setting: str) -> Gate:
        try:
            return GuardedGate(kind.build(raw, sources, setting), sources.log)
        except InvalidSetting:
            raise
        except Exception as error:
            name = kind.gate.__name__
            raise InvalidSetting(
                setting,
                found=f"{name} ({kind.gate.gate_type}), which raised {type(error).__name__}: {error}",
                accepted="parameters with which the gate can be built",
            ) from error

    return build
