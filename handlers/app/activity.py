"""What a poller says of itself to those who look: its pools and gates, at one moment."""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from handlers.gates.gate import Gate, GateState
from handlers.poller.pool import Pool
from handlers.redis_store.activity import GateReport, PollerReport, PoolReport

OwnedGate = tuple[str, str, Gate]
"""Queue (empty for a pool's gate), pool, gate."""


def reporter(pools: Mapping[str, Pool], gates: Sequence[OwnedGate]) -> Callable[[float], PollerReport]:
    """A function that reports the poller as it is when called, with the instant that it is given."""
    host, started_at = socket.gethostname(), time.time()
    poller_id = f"{host}:{secrets.token_hex(4)}"

    def report(now: float) -> PollerReport:
        return PollerReport(
            poller_id=poller_id,
            host=host,
            started_at=started_at,
            at=now,
            pools=tuple(_pool(pool) for pool in pools.values() if pool.sources),
            gates=tuple(one for owned in gates for one in _gates(*owned)),
        )

    return report


def _pool(pool: Pool) -> PoolReport:
    in_flight = sum(source.carrier.in_flight for source in pool.sources.values())
    return PoolReport(pool_id=pool.pool_id, slots=pool.slots, in_flight=in_flight, budget=pool.budget)


def _gates(queue: str, pool: str, gate: Gate) -> Iterator[GateReport]:
    return _states(queue, pool, gate.state())


def _states(queue: str, pool: str, state: GateState) -> Iterator[GateReport]:
    """The gate, then those inside it."""
    yield GateReport(
        gate_type=state.gate_type,
        queue=queue,
        pool=pool,
        label=state.label,
        budget=round(state.budget, 4),
        value=state.value,
        threshold=state.threshold,
        is_source_available=state.is_source_available,
        on_missing=state.on_missing,
        why_closed=state.why_closed,
    )
    for inner in state.inner:
        yield from _states(queue, pool, inner)
