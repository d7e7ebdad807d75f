"""A gate around one other: everything is the inner gate's, but for what a subclass changes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from handlers.contract.request import Request
from handlers.gates.gate import NO_LABELS, Answer, Gate, GateState, Share, Verdict
from handlers.gates.parameters import Accepts, json_of, unique_keys


class WrapperGate(Gate):
    """Passes every question on to `inner`."""

    def __init__(self, inner: Gate) -> None:
        self._inner = inner

    async def start(self) -> None:
        """Start the inner gate."""
        await self._inner.start()

    async def aclose(self) -> None:
        """Close the inner gate."""
        await self._inner.aclose()

    def take_over(self, before: Gate) -> None:
        """The inner gate goes on from the other's inner gate."""
        if isinstance(before, WrapperGate) and before.gate_type == self.gate_type:
            self._inner.take_over(before._inner)

    def budget(self) -> float:
        """The inner gate's."""
        return self._inner.budget()

    def shares(self) -> tuple[Share, ...]:
        """The inner gate's."""
        return self._inner.shares()

    def shares_pool(self) -> bool:
        """If the inner gate does."""
        return self._inner.shares_pool()

    def room(self, labels: Mapping[str, str] = NO_LABELS) -> int | None:
        """The inner gate's."""
        return self._inner.room(labels)

    async def admit(self, request: Request) -> Verdict:
        """The inner gate's verdict."""
        return await self._inner.admit(request)

    async def wait_open(self, until_at: float) -> bool:
        """Wait for the inner gate."""
        return await self._inner.wait_open(until_at)

    def observe(self, request: Request, answer: Answer) -> None:
        """Tell the inner gate."""
        self._inner.observe(request, answer)

    def state(self) -> GateState:
        """Under this gate's type, with the inner gate's below."""
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
