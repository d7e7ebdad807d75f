"""Which trace the work at hand belongs to: set where a span opens, read where a line is logged.

Apart from the tracer, so that logs know traces without loading OpenTelemetry.
"""

from __future__ import annotations

from contextvars import ContextVar, Token
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CurrentTrace:
    """W3C ids in lower-case hexadecimal: 32 digits of the trace, 16 of the span."""

    trace_id: str
    span_id: str
    is_sampled: bool


_current: ContextVar[CurrentTrace | None] = ContextVar("current_trace", default=None)


def current_trace() -> CurrentTrace | None:
    """The trace of the running task, if there is one."""
    return _current.get()


def enter_trace(trace: CurrentTrace) -> Token[CurrentTrace | None]:
    """Make this the trace of the running task until `leave_trace` gets the token."""
    return _current.set(trace)


def leave_trace(token: Token[CurrentTrace | None]) -> None:
    """Back to the trace before."""
    _current.reset(token)
