"""The table of gates is complete and refuses unknown types."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any

import pytest

import handlers.gates
from handlers.contract.errors import InvalidSetting
from handlers.gates.combinators import WrapperGate
from handlers.gates.gate import Gate
from handlers.gates.guarded import GuardedGate
from handlers.gates.metric.reading_gate import ReadingGate
from handlers.gates.registry import GATE_KINDS, ConstantGate
from tests.gates.building import gate, request

CONTRACT = {
    "constant",
    "redis",
    "prometheus-saturation",
    "prometheus-budget",
    "prometheus-query",
    "endpoint-scrape",
    "local-max-concurrency",
    "redis-quota",
    "redis-leased-rate",
    "tier-priority-admission",
    "composite",
    "wait-on-refuse",
    "aimd",
}
SHAPES = {Gate, GuardedGate, ReadingGate, WrapperGate}
"""Base classes, not gates themselves."""


def test_the_table_has_every_gate_of_the_contract() -> None:
    assert set(GATE_KINDS) == CONTRACT


def test_every_gate_class_is_in_the_table() -> None:
    modules = [
        importlib.import_module(module.name)
        for module in pkgutil.walk_packages(handlers.gates.__path__, "handlers.gates.")
    ]
    classes = {
        found
        for module in modules
        for _, found in inspect.getmembers(module, inspect.isclass)
        if issubclass(found, Gate) and found.__module__ == module.__name__ and found not in SHAPES
    }
    assert {kind.gate for kind in GATE_KINDS.values()} <= classes
    assert {found.gate_type for found in classes} == set(GATE_KINDS)


def test_an_unknown_type_stops_the_start_and_lists_the_known() -> None:
    with pytest.raises(InvalidSetting) as caught:
        gate("prometheus-saturaton")
    assert caught.value.setting == "queues[0].gate_type"
    assert all(name in caught.value.accepted for name in CONTRACT)
    assert caught.value.accepted.endswith("or a type that a package registers (no installed package does)")


def test_no_type_is_the_constant_gate() -> None:
    assert isinstance(gate(""), ConstantGate)


async def test_the_constant_gate_is_open() -> None:
    built = gate("constant")
    assert (built.budget(), built.room(), built.shares()[0].part) == (1.0, None, 1.0)
    assert (await built.admit(request())).__class__.__name__ == "Go"
    assert await built.wait_open(0.0)


@pytest.mark.parametrize("gate_type", sorted(CONTRACT))
def test_every_gate_refuses_a_parameter_it_does_not_know(gate_type: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        gate(gate_type, {"no_such_parameter": 1})
    assert caught.value.setting == "queues[0].gate_params.no_such_parameter"
    assert gate_type in str(caught.value)


@pytest.mark.parametrize(
    ("gate_type", "missing"),
    [
        ("redis", "address"),
        ("prometheus-saturation", "pool"),
        ("prometheus-budget", "pool"),
        ("prometheus-query", "query"),
        ("endpoint-scrape", "url"),
        ("local-max-concurrency", "limit"),
        ("redis-quota", "address"),
        ("redis-leased-rate", "address"),
        ("tier-priority-admission", "saturation_gate"),
        ("composite", "gates"),
        ("wait-on-refuse", "gate"),
    ],
)
def test_a_required_parameter_that_is_missing_stops_the_start(gate_type: str, missing: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        gate(gate_type, {})
    assert caught.value.setting == f"queues[0].gate_params.{missing}"
    assert caught.value.found == "nothing"


@pytest.mark.parametrize(
    ("gate_type", "params", "setting"),
    [
        ("composite", {"gates": '[{"gate_type": "nope"}]'}, "gates[0].gate_type"),
        (
            "composite",
            {"gates": [{"gate_type": "local-max-concurrency", "gate_params": {"limit": 0}}]},
            "gates[0].gate_params.limit",
        ),
        ("composite", {"gates": "[]"}, "gates"),
        ("composite", {"gates": [{"type": "constant"}]}, "gates"),
        ("wait-on-refuse", {"gate": '{"gate_type": "nope"}'}, "gate.gate_type"),
        ("wait-on-refuse", {"gate": "constant"}, "gate"),
        (
            "tier-priority-admission",
            {"saturation_gate": "prometheus-query", "saturation_gate_params": "{}"},
            "saturation_gate_params.query",
        ),
        ("tier-priority-admission", {"saturation_gate": "nope"}, "saturation_gate"),
        ("aimd", {"min_window": 10, "max_window": 5}, "max_window"),
        ("aimd", {"decrease_factor": 1}, "decrease_factor"),
        ("redis-quota", {"address": "x", "limit": 1, "mode": "both"}, "mode"),
    ],
)
def test_an_error_of_an_inner_gate_names_its_full_path(gate_type: str, params: dict[str, Any], setting: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        gate(gate_type, params)
    assert caught.value.setting == f"queues[0].gate_params.{setting}"


@pytest.mark.parametrize("inner", ['{"gate_type": "constant"}', {"gate_type": "constant", "gate_params": "{}"}])
def test_an_inner_gate_may_be_text_or_json(inner: object) -> None:
    assert gate("wait-on-refuse", {"gate": inner}).budget() == 1.0
    assert gate("composite", {"gates": [inner] if isinstance(inner, dict) else f"[{inner}]"}).budget() == 1.0
