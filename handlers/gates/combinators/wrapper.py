"""Base class of gates with one inner gate, and inner gates' settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, TypeAlias

import msgspec
from msgspec import Meta

from handlers.contract.request import Request
from handlers.gates.gate import NO_LABELS, Feedback, Gate, GateState, Share, Verdict
from handlers.gates.parameters import Text, json_of, read_by


class WrapperGate(Gate):
    """Forwards every call to the inner gate. Subclasses override what they change."""

    def __init__(self, inner: Gate) -> None:
        self._inner = inner

    async def start(self) -> None:

        await self._inner.start()

    async def aclose(self) -> None:

        await self._inner.aclose()

    async def renewed(self, new: Gate, discarded: list[Gate]) -> Gate:
        """`new`, whose inner gate takes over the state of this one's."""
        if not isinstance(new, WrapperGate) or new.gate_type != self.gate_type:
            return await super().renewed(new, discarded)
        new._inner = await self._inner.renewed(new._inner, discarded)
        return new

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
        """State under this gate's type; `inner` has the inner gate's state."""
        inner = self._inner.state()
        return GateState(
            self.gate_type,
            budget=self.budget(),
            is_source_available=inner.is_source_available,
            why_missing=inner.why_missing,
            why_closed=inner.why_closed,
            inner=(inner,),
        )


class InnerGate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An inner gate in the settings."""

    gate_type: Text
    gate_params: dict[str, Any] = msgspec.field(default_factory=dict)


BuildInner: TypeAlias = Callable[[InnerGate, str, str], Gate]
"""Builds an inner gate. The strings are the paths of its type and its parameters, below those of the outer gate."""


def _inner(value: Any) -> Any:
    """Parse one inner gate. It and its parameters are JSON objects, or strings of JSON."""
    read = json_of(value)
    return {**read, "gate_params": json_of(read.get("gate_params") or {})} if isinstance(read, dict) else read


def _inner_list(value: Any) -> Any:
    read = json_of(value)
    return [_inner(one) for one in read] if isinstance(read, list) else read


_ONE: Final = '{"gate_type": "...", "gate_params": {...}}'
OneInnerGate = Annotated[InnerGate, read_by(_inner, _ONE)]
"""Type of a parameter that names one inner gate."""

InnerGates = Annotated[tuple[InnerGate, ...], Meta(min_length=1), read_by(_inner_list, f"a list of {_ONE}")]
"""Type of a parameter that names at least one inner gate."""

InnerParams = Annotated[dict[str, Any], read_by(json_of, "a JSON object")]
"""Type of the parameters of an inner gate; that gate checks them."""
