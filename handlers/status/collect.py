"""Count outcomes, and post them to the status board periodically.

Counting costs each request only a few additions.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from handlers.contract.request import Request
from handlers.contract.result import ErrorCode
from handlers.forward.middleware.admission import GATE_CLOSED, QUOTA_EXHAUSTED
from handlers.forward.middleware.breaker import CIRCUIT_OPEN, CIRCUIT_RECOVERING, RETRY_BUDGET
from handlers.forward.outcome import Answered, Outcome, Retry
from handlers.gates.gate import BANDS
from handlers.poller.claimer import Claimer
from handlers.redis_store.admin.status_board import StatusBoard
from handlers.redis_store.connection import Store
from handlers.status.report import LATENCY_SECONDS, Failure, PollerReport, PoolReport, QueueReport
from handlers.telemetry.dependencies import GateState

POST_SECONDS: Final = 5.0
_MOST_FAILURES: Final = 50
SHOWN_BYTES: Final = 256
"""Maximum bytes of an id, tenant or reason on the status board, so that 200 failures take at most 200 KB."""

_NOT_ATTEMPTED: Final = frozenset({GATE_CLOSED, QUOTA_EXHAUSTED, CIRCUIT_OPEN, CIRCUIT_RECOVERING, RETRY_BUDGET})
"""Reasons of retries without an attempt. Gates and circuits show their state themselves."""


class Tally(msgspec.Struct):
    """Counts and failures since the last post."""

    counts: Counter[str] = msgspec.field(default_factory=Counter)
    failures: deque[Failure] = msgspec.field(default_factory=lambda: deque(maxlen=_MOST_FAILURES))
    clock: Callable[[], float] = time.time
    tenant_field: str = "userid"

    def note(self, request: Request, outcome: Outcome) -> None:
        now = self.clock()
        match outcome:
            case Answered(result):
                is_good = 200 <= result.status_code < 300
                self.counts[_word(result.error_code, is_good=is_good)] += 1
                if request.created is not None:
                    rank = bisect_left(LATENCY_SECONDS, now - request.created)
                    self.counts[f"latency{rank}"] += 1
                if not is_good and result.error_code != ErrorCode.CANCELLED:
                    self._fail(request, now, result.error_code or "answered", result.status_code, is_final=True)
            case Retry(reason=reason) if reason in _NOT_ATTEMPTED:
                pass
            case Retry(reason=reason, last=last):
                self.counts["retried"] += 1
                self._fail(request, now, reason, last.status_code if last else 0, is_final=False)

    def _fail(self, request: Request, now: float, reason: str, status_code: int, *, is_final: bool) -> None:
        tenant = request.metadata.get(self.tenant_field, "") if request.metadata else ""
        self.failures.append(
            Failure(
                round(now, 3),
                cut(request.id),
                cut(request.queue),
                request.attempt,
                cut(reason),
                status_code,
                is_final,
                cut(tenant),
            )
        )

    def take(self) -> tuple[dict[str, int], list[bytes]]:
        """Return the counts and failures so far, and reset them."""
        counts, failures = dict(self.counts), [msgspec.json.encode(one) for one in self.failures]
        self.counts.clear()
        self.failures.clear()
        return counts, failures


def cut(text: str) -> str:
    """The text, cut to at most `SHOWN_BYTES`."""
    encoded = text.encode("utf-8", "replace")
    return text if len(encoded) <= SHOWN_BYTES else encoded[: SHOWN_BYTES - 3].decode("utf-8", "ignore") + "…"


def _word(error_code: str, *, is_good: bool) -> str:
    if is_good:
        return "answered"
    if error_code == ErrorCode.CANCELLED:
        return "cancelled"
    return "expired" if error_code == ErrorCode.DEADLINE_EXCEEDED else "failed"


def gate_reports(states: Sequence[GateState]) -> list[GateState]:
    """The reports of all gates and inner gates as a flat list."""
    reports = []
    for state in states:
        reports.append(msgspec.structs.replace(state, budget=round(state.budget, 3), figures={}, inner=()))
        reports += gate_reports(list(state.inner))
    return reports


class StatusWatch:
    """Posts `report()` and the tally; removes its entry at the end."""

    def __init__(self, board: StatusBoard, tally: Tally, report: Callable[[], PollerReport]) -> None:
        self._board = board
        self._tally = tally
        self._report = report

    async def tick(self) -> None:
        """Post once. If it fails, the counts since the last post are lost."""
        counts, failures = self._tally.take()
        await self._board.post(msgspec.json.encode(self._report()), int(self._tally.clock() // 60), counts, failures)

    async def leave(self) -> None:
        await self._board.leave()


def status_watch(redis: Store, tally: Tally, claimers: Mapping[str, Claimer]) -> StatusWatch:
    """A `StatusWatch` for the pools of `claimers`, whose entries may change."""
    host = socket.gethostname()  # the pod's name in Kubernetes
    board = StatusBoard(redis, f"{host}-{os.getpid()}-{secrets.token_hex(3)}")
    return StatusWatch(board, tally, lambda: poller_report(host, tally.clock(), claimers))


def poller_report(host: str, at: float, claimers: Mapping[str, Claimer]) -> PollerReport:
    """The current state of this process."""
    used = [claimer for claimer in claimers.values() if claimer.queues]
    return PollerReport(
        at=round(at, 3),
        host=host,
        pools=[
            PoolReport(
                claimer.pool_id,
                claimer.options.slots,
                claimer.in_flight,
                round(claimer.budget, 3),
                gate_reports([gate.state() for gate in claimer.options.gates]),
            )
            for claimer in used
        ],
        queues=[
            QueueReport(
                name,
                claimer.pool_id,
                BANDS[claimer.options.lane_of(queue.labels)],
                queue.worker.in_flight,
                queue.circuit.state if queue.circuit else "closed",
                gate_reports([gate.state() for gate in queue.gates]),
                queue.worker.waiting if queue.gates or claimer.options.gates else 0,
            )
            for claimer in used
            for name, queue in claimer.queues.items()
        ],
    )
