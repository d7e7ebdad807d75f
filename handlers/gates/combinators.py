"""Gates that wrap or combine other gates: `composite`, `wait-on-refuse`, `tier-priority-admission`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, TypeAlias, assert_never

import msgspec
from msgspec import Meta

from handlers.contract.accepted import about
from handlers.contract.request import Request
from handlers.gates.chain import admit_all
from handlers.gates.gate import (
    CLASSIFICATION,
    INTERACTIVE,
    NO_LABELS,
    OVERFLOW,
    POLL_SECONDS,
    RESERVED,
    TIER,
    Drop,
    Feedback,
    Gate,
    Go,
    Hold,
    Refuse,
    Share,
    Verdict,
)
from handlers.gates.parameters import Text, json_of, read_by
from handlers.telemetry.dependencies import GateState


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
            why_closed=inner.closed_because,
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


class CompositeParameters(msgspec.Struct, frozen=True, kw_only=True):
    """Inner gates, in the order in which they are called. Put cheap ones first."""

    gates: Annotated[
        InnerGates,
        about(
            "Inner gates, a list of `{gate_type, gate_params}`, asked in this order. All must "
            "admit a request; the smallest budget holds."
        ),
    ]


class CompositeGate(Gate):
    """Several gates as one, open while all are. The lowest budget holds, and every gate must admit a request."""

    gate_type = "composite"

    def __init__(self, parameters: CompositeParameters, build: BuildInner) -> None:
        self._gates = [
            build(inner, f"gates[{at}].gate_type", f"gates[{at}].gate_params")
            for at, inner in enumerate(parameters.gates)
        ]

    async def start(self) -> None:
        await asyncio.gather(*(gate.start() for gate in self._gates))

    async def aclose(self) -> None:
        await asyncio.gather(*(gate.aclose() for gate in self._gates))

    async def renewed(self, new: Gate, discarded: list[Gate]) -> Gate:
        """`new`, whose inner gates take over the state of this gate's."""
        if not isinstance(new, CompositeGate):
            return await super().renewed(new, discarded)
        kept = min(len(self._gates), len(new._gates))
        for index, gate in enumerate(new._gates):
            if index < kept:
                new._gates[index] = await self._gates[index].renewed(gate, discarded)
            else:
                await gate.start()
        discarded.extend(self._gates[kept:])
        return new

    def budget(self) -> float:
        return min(gate.budget() for gate in self._gates)

    def shares(self) -> tuple[Share, ...]:
        return tuple(share for gate in self._gates for share in gate.shares())

    def shares_pool(self) -> bool:
        return any(gate.shares_pool() for gate in self._gates)

    def room(self, labels: Mapping[str, str] = NO_LABELS) -> int | None:
        rooms = [room for gate in self._gates if (room := gate.room(labels)) is not None]
        return min(rooms, default=None)

    async def admit(self, request: Request) -> Verdict:
        return await admit_all(self._gates, request)

    async def wait_open(self, until_at: float) -> bool:
        """Wait for each inner gate in turn until all have room."""
        while self.room() == 0:
            for gate in self._gates:
                if not await gate.wait_open(until_at):
                    return False
        return True

    def observe(self, request: Request, feedback: Feedback) -> None:
        for gate in self._gates:
            gate.observe(request, feedback)

    def state(self) -> GateState:
        """State with the lowest budget; `inner` has each gate's own state."""
        inner = tuple(gate.state() for gate in self._gates)
        closed = next((one for one in inner if one.closed_because), None)
        return GateState(
            self.gate_type,
            budget=self.budget(),
            is_source_available=all(one.is_source_available for one in inner),
            why_closed=f"{closed.gate_type}: {closed.closed_because}" if closed else "",
            inner=inner,
        )


class WaitOnRefuseParameters(msgspec.Struct, frozen=True, kw_only=True):
    """The inner gate, whose refusals become waits."""

    gate: Annotated[
        OneInnerGate,
        about("Inner gate, `{gate_type, gate_params}`; a request that it refuses waits until the gate opens."),
    ]


class WaitOnRefuseGate(WrapperGate):
    """Requests that the inner gate refuses wait instead of being requeued."""

    gate_type = "wait-on-refuse"

    def __init__(self, parameters: WaitOnRefuseParameters, build: BuildInner) -> None:
        super().__init__(build(parameters.gate, "gate.gate_type", "gate.gate_params"))

    async def admit(self, request: Request) -> Verdict:
        """Ask the inner gate. A refusal becomes a hold for the delay of the refusal."""
        verdict = await self._inner.admit(request)
        if not isinstance(verdict, Refuse):
            return verdict
        delay_seconds = verdict.delay_seconds

        async def wait_open(until_at: float) -> bool:
            if self._inner.room() == 0:
                return await self._inner.wait_open(until_at)
            left = until_at - time.time()
            await asyncio.sleep(max(0.0, min(left, max(delay_seconds, POLL_SECONDS))))
            return left > 0 and time.time() < until_at

        return Hold(verdict.reason, wait_open)


class TierPriorityParameters(msgspec.Struct, frozen=True, kw_only=True):
    """The inner gate that measures saturation, and the label of the tier."""

    saturation_gate: Annotated[Text, about("Type of the inner gate, whose budget shows how full the pool is.")]
    saturation_gate_params: Annotated[InnerParams, about("Parameters of the inner gate.")] = msgspec.field(
        default_factory=dict
    )
    tier_label: Annotated[Text, about("Label that holds a request's tier.")] = TIER


class TierPriorityGate(WrapperGate):
    """Decides by classification and tier while the pool is saturated.

    The pool is saturated while the inner gate refuses or holds requests. Then reserved requests wait. Interactive
    requests classified `overflow` are dropped with a 429, because their clients wait and can use another service. All
    other requests return to the queue.
    """

    gate_type = "tier-priority-admission"

    def __init__(self, parameters: TierPriorityParameters, build: BuildInner) -> None:
        inner = InnerGate(parameters.saturation_gate, parameters.saturation_gate_params)
        super().__init__(build(inner, "saturation_gate", "saturation_gate_params"))
        self._tier_label = parameters.tier_label

    def shares(self) -> tuple[Share, ...]:
        """Shares of the inner gate. All slots while it is closed, so that requests get a verdict."""
        return (Share(1.0),) if self._inner.room() == 0 else self._inner.shares()

    def room(self, labels: Mapping[str, str] = NO_LABELS) -> int | None:
        """Room of the inner gate. None (unlimited) for requests to drop, which must be claimed first."""
        if self._inner.room(labels) == 0 and self._may_be_dropped(labels):
            return None
        return self._inner.room(labels)

    async def admit(self, request: Request) -> Verdict:
        """Ask the inner gate. If it refuses, decide by classification and tier."""
        verdict = await self._inner.admit(request)
        match verdict:
            case Go() | Drop():
                return verdict
            case Hold(reason=reason) | Refuse(reason=reason):
                if self._waits(request.labels):
                    wait = verdict.wait_open if isinstance(verdict, Hold) else self._inner.wait_open
                    return Hold(f"saturated: {reason}", wait)
                if self._is_dropped(request.labels):
                    return Drop(429, f"saturated: {reason}")
                delay_seconds = verdict.delay_seconds if isinstance(verdict, Refuse) else 1.0
                return Refuse(delay_seconds, f"saturated: {reason}")
            case _:
                assert_never(verdict)

    def _waits(self, labels: Mapping[str, str]) -> bool:
        return labels.get(CLASSIFICATION) == RESERVED

    def _is_dropped(self, labels: Mapping[str, str]) -> bool:
        return labels.get(CLASSIFICATION) == OVERFLOW and labels.get(self._tier_label) == INTERACTIVE

    def _may_be_dropped(self, labels: Mapping[str, str]) -> bool:
        """Whether `admit` may drop requests with these labels. A quota gate may still classify them."""
        return labels.get(CLASSIFICATION, OVERFLOW) == OVERFLOW and labels.get(self._tier_label) == INTERACTIVE
