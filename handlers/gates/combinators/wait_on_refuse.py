"""`wait-on-refuse`: what the inner gate refuses waits where it is, rather than go back to the queue."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from handlers.contract.request import Request
from handlers.gates.combinators.wrapper import BuildInner, InnerGate, WrapperGate, inner_gate
from handlers.gates.gate import LOOK_AGAIN_SECONDS, Hold, Refuse, Verdict
from handlers.gates.parameters import parameter


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitOnRefuseParameters:
    """The gate whose refusals become waiting."""

    gate: InnerGate = parameter(  # noqa: RUF009 - makes a dataclasses.field
        inner_gate(),
        means=(
            "The inner gate, `{gate_type, gate_params}`: its refusals hold the request here until it opens."
        ),
    )


class WaitOnRefuseGate(WrapperGate):
    """Holds instead of refusing."""

    gate_type = "wait-on-refuse"

    def __init__(self, parameters: WaitOnRefuseParameters, build: BuildInner) -> None:
        super().__init__(build(parameters.gate, "gate.gate_type", "gate.gate_params"))

    async def admit(self, request: Request) -> Verdict:
        """The inner verdict, with a refusal turned into waiting as long as the refusal asked for."""
        verdict = await self._inner.admit(request)
        if not isinstance(verdict, Refuse):
            return verdict
        delay_seconds = verdict.delay_seconds

        async def wait_open(until_at: float) -> bool:
            if self._inner.room() == 0:
                return await self._inner.wait_open(until_at)
            left = until_at - time.time()
            await asyncio.sleep(max(0.0, min(left, max(delay_seconds, LOOK_AGAIN_SECONDS))))
            return left > 0 and time.time() < until_at

        return Hold(verdict.reason, wait_open)
