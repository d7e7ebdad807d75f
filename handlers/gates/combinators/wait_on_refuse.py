"""`wait-on-refuse`: requests that the inner gate refuses wait instead of being requeued."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

import msgspec

from handlers.contract.accepted import about
from handlers.contract.request import Request
from handlers.gates.combinators.wrapper import BuildInner, OneInnerGate, WrapperGate
from handlers.gates.gate import POLL_SECONDS, Hold, Refuse, Verdict


class WaitOnRefuseParameters(msgspec.Struct, frozen=True, kw_only=True):
    """The inner gate, whose refusals become waits."""

    gate: Annotated[
        OneInnerGate,
        about(
            "Inner gate, `{gate_type, gate_params}`; a request that it refuses waits until the gate opens."
        ),
    ]


class WaitOnRefuseGate(WrapperGate):
    """Holds requests instead of refusing them."""

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
