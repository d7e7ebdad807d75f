"""Several gates for one request: all say go, or nothing is kept of any."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import assert_never

import msgspec

from handlers.contract.request import Request
from handlers.gates.gate import NOTHING_RESERVED, Drop, Gate, Go, Hold, Refuse, Reservation, Verdict


class Reservations:
    """What several gates reserved for one request, given back in reverse order."""

    def __init__(self, held: Sequence[Reservation]) -> None:
        self._held = held

    async def release(self) -> None:
        """The request was sent, and is over."""
        for reservation in reversed(self._held):
            await reservation.release()

    async def give_back(self) -> None:
        """The request was not sent."""
        for reservation in reversed(self._held):
            await reservation.give_back()


async def admit_all(gates: Sequence[Gate], request: Request) -> Verdict:
    """Ask each gate in turn. The first that does not say go decides; what the earlier reserved goes back.

    A later gate sees the labels that the earlier ones gave.
    """
    held: list[Reservation] = []
    labels: dict[str, str] = {}
    is_over = False
    try:
        for gate in gates:
            verdict = await gate.admit(labelled(request, labels))
            match verdict:
                case Go():
                    if verdict.reservation is not NOTHING_RESERVED:
                        held.append(verdict.reservation)
                    labels |= verdict.labels
                case Hold() | Refuse() | Drop():
                    return verdict
                case _:
                    assert_never(verdict)
        is_over = True
    finally:
        if not is_over:  # refused, failed or cancelled: whatever the way out, nothing stays reserved
            await Reservations(held).give_back()
    return Go(Reservations(held) if held else NOTHING_RESERVED, labels)


def without_labels(request: Request, names: Collection[str]) -> Request:
    """`request` without the labels of these names."""
    if not any(name in request.labels for name in names):
        return request
    kept = {name: value for name, value in request.labels.items() if name not in names}
    return msgspec.structs.replace(request, labels=kept)


def labelled(request: Request, labels: Mapping[str, str]) -> Request:
    """`request` with `labels` added to its own; theirs win."""
    if not labels:
        return request
    return msgspec.structs.replace(request, labels={**request.labels, **labels})
