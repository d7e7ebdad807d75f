"""Several gates for one request: all say go, or nothing is kept of any."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import assert_never

import msgspec

from handlers.contract.request import Request
from handlers.gates.gate import NOTHING_RESERVED, Drop, Gate, Go, Hold, Refuse, Reservation, Verdict
from handlers.gates.labels import labelled


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


def with_claim(request: Request) -> Request:
    """The request under a claim name that nobody can choose: what a gate reserves covers this claim alone."""
    return request if request.claim else msgspec.structs.replace(request, claim=secrets.token_hex(16))


def claim_name(request: Request) -> str:
    """The name of the request's claim; of a request without one, its id and token, or its deadline without a token."""
    if request.claim:
        return request.claim
    if request.request_token:
        return f"{request.id}\0{request.request_token}"
    return f"{request.id}\0\0{request.deadline:.6f}"
