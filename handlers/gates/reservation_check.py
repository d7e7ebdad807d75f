"""A test of any admission gate, for packages that add one."""

from __future__ import annotations

import secrets
import time

from handlers.contract.request import Request
from handlers.gates.gate import Gate, Go, Reservation


async def check_reservations(gate: Gate, *, most: int = 100) -> None:
    """Raise `AssertionError` unless every reservation of a new gate can be undone.

    Starts the gate, fills it with at most `most` requests, and gives back all. It must admit as many again. Then all
    are released, and the gate is closed.
    """
    await gate.start()
    try:
        at_first = await _admitted(gate, most)
        if not at_first:
            raise AssertionError(f"{gate.gate_type}: expected a Go for the first request, got none")
        for reservation in at_first:
            await reservation.give_back()
        again = await _admitted(gate, most)
        if len(again) != len(at_first):
            raise AssertionError(
                f"{gate.gate_type}: expected as many admitted requests after give_back as before ({len(at_first)}), "
                f"got {len(again)}"
            )
        for reservation in again:
            await reservation.release()
        gate.state()
    finally:
        await gate.aclose()


async def _admitted(gate: Gate, most: int) -> list[Reservation]:
    """The reservations of new requests, until the gate admits no more."""
    found: list[Reservation] = []
    while len(found) < most:
        claim = secrets.token_hex(16)
        verdict = await gate.admit(Request(id=claim, deadline=time.time() + 600, payload=b"{}", claim=claim))
        if not isinstance(verdict, Go):
            break
        found.append(verdict.reservation)
    return found
