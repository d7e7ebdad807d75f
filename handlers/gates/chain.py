"""The order in which gates are called, and admission by several gates.

Pools, queues and subscriptions may each name a gate. A request meets them in this order:

    when               caller                  asked                                              effect
    claiming           poller/claimer.py       shares() of the pool's gate; room() and shares()   number of requests
    (Redis queues)                             of the queue's gate; synchronous                   claimed
    before sending     forward, for the        admit_all([queue's gate, pool's gate])             sent, held, put back
    (Redis queues)     poller's worker                                                            or dropped
    at a push door     forward, for the door   WaitingRoom.enter(): the subscription's room,      sent, held at the
    (Pub/Sub, events)                          then the pool's; each calls admit_all()            door, nacked, dropped
    after sending      forward                 observe(feedback) of each gate, then release()     windows learn, slots
                                               or give_back() of the reservation                  are free again

A budget limits concurrency: an `Allowance` converts the shares of a gate to slots. The poller applies it when it
claims. A door cannot choose how many pushes arrive, so its `WaitingRoom` applies the budget and holds the rest.

If a gate's verdict is not `Go`, the reservations at earlier gates are undone. After `Go` they last until the outcome.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import assert_never

import msgspec

from handlers.contract.request import Request
from handlers.gates.gate import NOTHING_RESERVED, Drop, Gate, Go, Hold, Refuse, Reservation, Verdict, labelled


class Reservations:
    """Reservations of several gates for one request, undone in reverse order."""

    def __init__(self, held: Sequence[Reservation]) -> None:
        self._held = held

    async def release(self) -> None:
        """Release each reservation: the request was sent and has ended."""
        for reservation in reversed(self._held):
            await reservation.release()

    async def give_back(self) -> None:
        """Undo each reservation: the request was not sent."""
        for reservation in reversed(self._held):
            await reservation.give_back()


async def admit_all(gates: Sequence[Gate], request: Request) -> Verdict:
    """Ask `gates` in order. The first verdict that is not `Go` decides.

    Each gate sees the labels that earlier gates added. Unless all verdicts are `Go`, and also after an error or
    cancellation, earlier reservations are undone.
    """
    held: list[Reservation] = []
    labels: dict[str, str] = {}
    is_admitted = False
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
        is_admitted = True
    finally:
        if not is_admitted:
            await Reservations(held).give_back()
    return Go(Reservations(held) if held else NOTHING_RESERVED, labels)


def with_claim(request: Request) -> Request:
    """Copy of `request` with a random claim id, unless it has one.

    Reservations belong to a claim id. It is random, so that a producer cannot choose one and use another request's
    reservation.
    """
    return request if request.claim else msgspec.structs.replace(request, claim=secrets.token_hex(16))


def claim_name(request: Request) -> str:
    """Key of the reservations of a request's claim.

    A request without a claim uses its id and token, or its id and deadline if it has no token.
    """
    if request.claim:
        return request.claim
    if request.request_token:
        return f"{request.id}\0{request.request_token}"
    return f"{request.id}\0\0{request.deadline:.6f}"
