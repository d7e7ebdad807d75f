"""Start a gate for a test, and close it after."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

from handlers.gates.gate import Gate
from handlers.gates.sources import GateSources
from tests.gates.building import gate
from tests.waiting import wait_until_async


@contextlib.asynccontextmanager
async def started(gate_type: str, params: Mapping[str, Any], given: GateSources) -> AsyncIterator[Gate]:
    built = gate(gate_type, params, given)
    await built.start()
    try:
        yield built
    finally:
        await built.aclose()


async def until_budget(built: Gate, budget: float, what: str) -> None:
    """Wait until the gate publishes `budget`, to a thousandth."""
    await wait_until_async(
        lambda: abs(built.budget() - budget) < 0.001, f"budget {budget} ({what}); state {built.state()}"
    )
