"""`composite`: several gates as one. The lowest budget holds, and every gate must admit a request."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated

import msgspec

from handlers.contract.accepted import about
from handlers.contract.request import Request
from handlers.gates.chain import admit_all
from handlers.gates.combinators.wrapper import BuildInner, InnerGates
from handlers.gates.gate import NO_LABELS, Feedback, Gate, GateState, Share, Verdict


class CompositeParameters(msgspec.Struct, frozen=True, kw_only=True):
    """Inner gates, in the order in which they are asked. Put cheap ones first."""

    gates: Annotated[
        InnerGates,
        about(
            "Inner gates, a list of `{gate_type, gate_params}`, asked in this order. All must "
            "admit a request; the smallest budget holds."
        ),
    ]


class CompositeGate(Gate):
    """Open while all inner gates are open."""

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
        closed = next((one for one in inner if one.why_closed), None)
        return GateState(
            self.gate_type,
            budget=self.budget(),
            is_source_available=all(one.is_source_available for one in inner),
            why_closed=f"{closed.gate_type}: {closed.why_closed}" if closed else "",
            inner=inner,
        )
