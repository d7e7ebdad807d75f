"""`constant`: always open."""

from __future__ import annotations

from dataclasses import dataclass

from handlers.gates.gate import Gate
from handlers.gates.sources import GateSources


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantParameters:
    """There are none."""


class ConstantGate(Gate):
    """A gate for a pool whose slots are limit enough."""

    gate_type = "constant"

    def __init__(self, parameters: ConstantParameters, sources: GateSources) -> None:
        """Takes both, as every gate does; needs neither."""
