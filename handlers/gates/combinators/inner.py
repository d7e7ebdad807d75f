"""Gates inside gates: how a combinator names them, and what builds them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from handlers.gates.gate import Gate
from handlers.gates.parameters import Accepts, json_of, unique_keys


@dataclass(frozen=True, slots=True)
class InnerGate:
    """One gate as the settings name it."""

    gate_type: str
    gate_params: Mapping[str, Any] = field(default_factory=dict)


BuildInner: TypeAlias = Callable[[InnerGate, str, str], Gate]
"""Builds an inner gate; the texts are where its type and its parameters are, below the outer gate's own."""

_DESCRIBED = '{"gate_type": "...", "gate_params": {...}}'


def inner_gate() -> Accepts[InnerGate]:
    """One gate, as a JSON object or a string of it."""
    return json_of(_DESCRIBED, _read)


def inner_gates() -> Accepts[tuple[InnerGate, ...]]:
    """A JSON list of one gate or more."""

    def read(value: Any) -> tuple[InnerGate, ...]:
        if not isinstance(value, list) or not value:
            raise ValueError
        return tuple(_read(one) for one in value)

    return json_of(f"a list of {_DESCRIBED}", read)


def raw_params() -> Accepts[Mapping[str, Any]]:
    """The parameters of an inner gate, checked by that gate."""
    return json_of("a JSON object", _read_params)


def _read(value: Any) -> InnerGate:
    if not isinstance(value, Mapping) or set(value) - {"gate_type", "gate_params"}:
        raise ValueError
    gate_type = value.get("gate_type")
    if not isinstance(gate_type, str) or not gate_type:
        raise ValueError
    return InnerGate(gate_type, _read_params(value.get("gate_params") or {}))


def _read_params(value: Any) -> Mapping[str, Any]:
    read = json.loads(value, object_pairs_hook=unique_keys) if isinstance(value, str) else value
    if not isinstance(read, Mapping):
        raise ValueError
    return read
