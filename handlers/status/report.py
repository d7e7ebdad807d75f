"""The reports that pollers post to the status board."""

from __future__ import annotations

from typing import Final

import msgspec

from handlers.telemetry.dependencies import GateState

LATENCY_SECONDS: Final = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1_000.0, 3_600.0)
"""Upper bounds of the latency classes; the last class is unbounded."""


class QueueReport(msgspec.Struct, frozen=True):
    """The state of one queue in one poller. Of the requests `in_flight`, `waiting` are at a gate."""

    name: str
    pool: str
    lane: str
    in_flight: int
    circuit: str
    gates: list[GateState]
    waiting: int = 0


class PoolReport(msgspec.Struct, frozen=True):
    """The state of one pool in one poller."""

    pool: str
    slots: int
    in_flight: int
    budget: float
    gates: list[GateState]


class PollerReport(msgspec.Struct, frozen=True):
    """The report of one poller; `at` is in Unix seconds."""

    at: float
    host: str
    pools: list[PoolReport] = msgspec.field(default_factory=list)
    queues: list[QueueReport] = msgspec.field(default_factory=list)


class Failure(msgspec.Struct, frozen=True):
    """A failed attempt or request, without its payload."""

    at: float
    id: str
    queue: str
    attempt: int
    reason: str
    status_code: int = 0
    is_final: bool = False
    tenant: str = ""
