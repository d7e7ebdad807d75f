"""Base class of gates around one inner gate, and how settings name inner gates."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from handlers.contract.request import Request
from handlers.gates.gate import NO_LABELS, Feedback, Gate, GateState, Share, Verdict
from handlers.gates.parameters import Accepts, json_value, unique_keys


class WrapperGate(Gate):
    """Forwards every call to the inner gate; subclasses override what they change."""

    def __init__(self, inner: Gate) -> None:
        self._inner = inner

    async def start(self) -> None:

        await self._inner.start()

    async def aclose(self) -> None:

        await self._inner.aclose()

    def take_over(self, previous: Gate) -> None:
        if isinstance(previous, WrapperGate) and previous.gate_type == self.gate_type:
            self._inner.take_over(previous._inner)

    def budget(self) -> float:

        return self._inner.budget()

    def shares(self) -> tuple[Share, ...]:

        return self._inner.shares()

    def shares_pool(self) -> bool:

        return self._inner.shares_pool()

    def room(self, labels: Mapping[str, str] = NO_LABELS) -> int | None:

        return self._inner.room(labels)

    async def admit(self, request: Request) -> Verdict:

        return await self._inner.admit(request)

    async def wait_open(self, until_at: float) -> bool:

        return await self._inner.wait_open(until_at)

    def observe(self, request: Request, feedback: Feedback) -> None:
        self._inner.observe(request, feedback)

    def state(self) -> GateState:
        """State under this gate's type, with the inner gate's state below."""
        inner = self._inner.state()
        return GateState(
            self.gate_type,
            budget=self.budget(),
            is_source_available=inner.is_source_available,
            why_closed=inner.why_closed,
            inner=(inner,),
        )


@dataclass(frozen=True, slots=True)
class InnerGate:
    """Inner gate as named in the settings."""

    gate_type: str
    gate_params: Mapping[str, Any] = field(default_factory=dict)


BuildInner: TypeAlias = Callable[[InnerGate, str, str], Gate]
"""Builds an inner gate; the strings are the paths of its type and its parameters below the outer gate's."""

_DESCRIBED = '{"gate_type": "...", "gate_params": {...}}'


def inner_gate() -> Accepts[InnerGate]:
    """One inner gate, as a JSON object or a string of one."""
    return json_value(_DESCRIBED, _read)


def inner_gates() -> Accepts[tuple[InnerGate, ...]]:
    """A JSON list of at least one inner gate."""

    def read(value: Any) -> tuple[InnerGate, ...]:
        if not isinstance(value, list) or not value:
            raise ValueError
        return tuple(_read(one) for one in value)

    return json_value(f"a list of {_DESCRIBED}", read)


def raw_params() -> Accepts[Mapping[str, Any]]:
    """Parameters of an inner gate; that gate checks them."""
    return json_value("a JSON object", _read_params)


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
