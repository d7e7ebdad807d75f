"""The wiring of the status board: what a poller reports, and the page that reads it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence

from handlers.gates.gate import Gate
from handlers.gates.labels import BANDS
from handlers.poller.claimer import Pool
from handlers.poller.status_watch import (
    PollerReport,
    PoolReport,
    QueueReport,
    StatusWatch,
    Tally,
    gate_reports,
    host_name,
)
from handlers.redis_store.admin.status_board import StatusBoard
from handlers.redis_store.connection import Store


def status_watch(
    redis: Store, tally: Tally, pools: Mapping[str, Pool], pool_gates: Mapping[str, Sequence[Gate]]
) -> StatusWatch:
    """Posts what these pools do."""
    host = host_name()
    board = StatusBoard(redis, f"{host}-{os.getpid()}-{secrets.token_hex(3)}")
    return StatusWatch(board, tally, lambda: poller_report(host, tally.clock(), pools, pool_gates))


def poller_report(
    host: str, at: float, pools: Mapping[str, Pool], pool_gates: Mapping[str, Sequence[Gate]]
) -> PollerReport:
    """This process at one moment."""
    used = [pool for pool in pools.values() if pool.sources]
    return PollerReport(
        at=round(at, 3),
        host=host,
        pools=[
            PoolReport(
                pool.pool_id,
                pool.slots,
                pool.in_flight,
                round(pool.budget, 3),
                gate_reports([gate.state() for gate in pool_gates.get(pool.pool_id, ())]),
            )
            for pool in used
        ],
        queues=[
            QueueReport(
                name,
                pool.pool_id,
                BANDS[pool.lane_of(source.labels)],
                source.carrier.in_flight,
                source.circuit.state if source.circuit else "closed",
                gate_reports([gate.state() for gate in source.gates]),
            )
            for pool in used
            for name, source in pool.sources.items()
        ],
    )
