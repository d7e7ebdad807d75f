"""Counting put around forwarding: nothing inside knows of it, and where nobody counts none of this is built."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias

from handlers.contract.request import Request
from handlers.forward.forward import AttemptOptions, Forward
from handlers.forward.outcome import Outcome
from handlers.telemetry.metrics import DoorMetrics, QueueMetrics

QueueOf: TypeAlias = Callable[[str], QueueMetrics | None]
"""The series of a queue or subscription by its name; None for what somebody else counts."""


def counted_calls(forward: Forward, queue_of: QueueOf) -> Forward:
    """Forwarding, counted as calls to the gateway; put it inside of whatever holds requests back."""

    async def counted(request: Request, options: AttemptOptions) -> Outcome:
        queue = queue_of(request.queue)
        if queue is None:
            return await forward(request, options)
        began_at = queue.sending()
        try:
            return await forward(request, options)
        finally:
            queue.sent(began_at)

    return counted


def counted_attempts(
    forward: Forward, queue_of: QueueOf, door: DoorMetrics, clock: Callable[[], float] = time.time
) -> Forward:
    """Forwarding, counted as attempts, held ones included; `clock` gives Unix seconds."""

    async def counted(request: Request, options: AttemptOptions) -> Outcome:
        queue = queue_of(request.queue)
        door.started()
        if queue is not None:
            waited = None if request.created is None else max(0.0, clock() - request.created)
            queue.started(request.attempt, waited)
        try:
            return await forward(request, options)
        finally:
            door.ended()
            if queue is not None:
                queue.ended()

    return counted
