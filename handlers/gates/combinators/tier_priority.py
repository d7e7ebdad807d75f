"""`tier-priority-admission`: decides by classification and tier while the pool is saturated.

The pool is saturated while the inner gate refuses or holds requests. Then reserved requests wait. Interactive requests
classified `overflow` are dropped with a 429, since their clients are waiting and can use another service. All others go
back to the queue.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, assert_never

import msgspec

from handlers.contract.accepted import about
from handlers.contract.request import Request
from handlers.gates.combinators.wrapper import BuildInner, InnerGate, InnerParams, WrapperGate
from handlers.gates.gate import NO_LABELS, Drop, Go, Hold, Refuse, Share, Verdict
from handlers.gates.labels import CLASSIFICATION, INTERACTIVE, OVERFLOW, RESERVED, TIER
from handlers.gates.parameters import Text


class TierPriorityParameters(msgspec.Struct, frozen=True, kw_only=True):
    """The inner gate that measures saturation, and the label of the tier."""

    saturation_gate: Annotated[Text, about("Type of the inner gate, whose budget says how full the pool is.")]
    saturation_gate_params: Annotated[InnerParams, about("Parameters of the inner gate.")] = msgspec.field(
        default_factory=dict
    )
    tier_label: Annotated[Text, about("Label that holds a request's tier.")] = TIER


class TierPriorityGate(WrapperGate):
    """Decides by saturation of the pool, and a request's classification and tier."""

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
        return (
            labels.get(CLASSIFICATION, OVERFLOW) == OVERFLOW and labels.get(self._tier_label) == INTERACTIVE
        )
