"""Retry reasons in the code are those of the metrics."""

from __future__ import annotations

from handlers.doors.door import NOT_RECORDED
from handlers.forward.middleware.admission import GATE_CLOSED, QUOTA_EXHAUSTED
from handlers.forward.middleware.breaker import CIRCUIT_OPEN, CIRCUIT_RECOVERING, RETRY_BUDGET
from handlers.forward.outcome import FAILURE_REASONS, STATUS_REASONS
from handlers.poller.dispatcher import HANDLER_LOST, HANDLER_REFUSED, HANDLER_UNAVAILABLE
from handlers.telemetry.metrics import REASONS


def test_each_kind_of_failure_has_its_own_retry_reason() -> None:
    """Every reason in the code is known to the metrics, as others would count as `other`."""
    message = {*STATUS_REASONS.values(), "server_error", *(reason for _, reason in FAILURE_REASONS)}
    message |= {GATE_CLOSED, QUOTA_EXHAUSTED, CIRCUIT_OPEN, CIRCUIT_RECOVERING, RETRY_BUDGET, NOT_RECORDED}
    message |= {HANDLER_UNAVAILABLE, HANDLER_LOST, HANDLER_REFUSED}
    assert message - REASONS == set()
