"""The board's data about a request is bounded in bytes, whatever the client sends."""

from __future__ import annotations

import msgspec
import pytest

from handlers.contract.request import Request
from handlers.contract.result import ErrorCode, error_result
from handlers.forward.middleware.admission import refused
from handlers.forward.middleware.breaker import CIRCUIT_OPEN, CIRCUIT_RECOVERING, RETRY_BUDGET
from handlers.forward.outcome import Answered, Retry
from handlers.gates.gate import Refuse
from handlers.redis_store.admin.depths import QueueDepths
from handlers.status.collect import Tally
from handlers.status.overview import queue_lines
from handlers.status.report import PollerReport, QueueReport

LARGE = 2_000_000


@pytest.mark.parametrize("sign", ["x", "é", "團", "\x00", '"'])
@pytest.mark.parametrize("is_final", [True, False])
def test_a_failure_on_the_board_is_small(sign: str, is_final: bool) -> None:
    tally = Tally()
    request = Request(id=sign * LARGE, queue=sign * LARGE, deadline=5.0, payload=b"", metadata={"userid": sign * LARGE})
    outcome = Answered(error_result("a", "", ErrorCode.INVALID_REQUEST, "m")) if is_final else Retry(1.0, sign * LARGE)
    tally.note(request, outcome)
    _, (failure,) = tally.take()
    reported = msgspec.json.decode(failure)
    assert max(len(value.encode()) for value in reported.values() if isinstance(value, str)) <= 256
    assert len(failure) < 8_000, "256 bytes each, escaped at the worst"


def test_a_request_that_a_gate_or_an_open_circuit_sends_back_is_no_failure() -> None:
    tally = Tally(clock=lambda: 0.0)
    request = Request(id="r", queue="q", deadline=60.0, payload=b"")
    for reason in ("no quota left", "closed"):
        tally.note(request, refused(request, Refuse(1.0, reason), lambda: 0.0))
    for word in (CIRCUIT_OPEN, CIRCUIT_RECOVERING, RETRY_BUDGET):
        tally.note(request, Retry(1.0, word, counts_attempt=False))
    assert tally.take() == ({}, [])
    tally.note(request, Retry(1.0, "handler_refused", counts_attempt=False))
    counts, failures = tally.take()
    assert (counts, len(failures)) == ({"retried": 1}, 1)


def test_requests_that_wait_at_a_gate_are_not_in_flight() -> None:
    reports = [
        PollerReport(0.0, host, queues=[QueueReport("q", "p", "lane", 10, "closed", [], waiting)])
        for host, waiting in (("a", 7), ("b", 3))
    ]
    [line] = queue_lines({"q": QueueDepths(5, 20, 0, 0)}, reports, {}, {})
    assert (line.in_flight, line.waiting) == (10, 10)
    [line] = queue_lines({"q": QueueDepths(5, 4, 0, 0)}, reports, {}, {})
    assert (line.in_flight, line.waiting) == (0, 4), "a report is older than the depth"
