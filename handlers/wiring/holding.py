"""What a handler holds at its gates, by name, so that the next one can go on with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from handlers.forward.forward import Forward

if TYPE_CHECKING:
    from handlers.forward.middleware.held import HeldForward
    from handlers.gates.gate import Gate
    from handlers.gates.waiting_room import WaitingRoom


@dataclass(slots=True)
class Holding:
    """`entry` is where requests go in; `holder` is who holds them there, if there is a gate.

    `keepers` and `gates` are those of a pool or subscription, by its name.
    """

    entry: Forward | None = None
    holder: HeldForward | None = None
    keepers: dict[str, WaitingRoom] = field(default_factory=dict)
    gates: dict[str, Sequence[Gate]] = field(default_factory=dict)

    def take_over(self, before: Holding, entry: Forward) -> None:
        """Count what `before` has in flight against our limits; what it holds goes in at `entry`, a way to ours."""
        for name, keeper in self.keepers.items():
            if name in before.keepers:
                keeper.take_over(before.keepers[name])
        for name, gates in self.gates.items():
            for gate, gate_before in zip(gates, before.gates.get(name, ()), strict=False):
                gate.take_over(gate_before)
        if before.holder is not None:
            before.holder.move_to(entry)
