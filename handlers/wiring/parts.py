"""What the wiring of a door passes along, and the walk through it, counted and logged."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from handlers.doors.accounted import AccountedDoor
from handlers.doors.door import ContextT, Door, handle
from handlers.doors.http_message import Answer, Delivery
from handlers.forward.forward import Forward
from handlers.telemetry.dependencies import Dependencies
from handlers.telemetry.logs import Logger
from handlers.wiring.holding import Holding
from handlers.wiring.metrics import HandlerMetrics

Walk = Callable[[Delivery], Awaitable[Answer]]
Closers = list[Callable[[], Awaitable[object]]]
Starters = list[Callable[[], Awaitable[object]]]


@dataclass(frozen=True, slots=True)
class Parts:
    """What a door's wiring adds to: who must be started and closed, what may fail, what holds requests.

    And who counts, if anybody does.
    """

    log: Logger
    closers: Closers
    starters: Starters
    metrics: HandlerMetrics | None
    dependencies: Dependencies = field(default_factory=Dependencies)
    holding: Holding = field(default_factory=Holding)


def accounted(
    door: Door[ContextT], queue_name: Callable[[ContextT], str], forward: Forward, parts: Parts
) -> Walk:
    """The walk of one door, counted and logged."""
    if parts.metrics is None:
        logging = AccountedDoor(door, queue_name, parts.log)
        return lambda delivery: handle(logging, delivery, forward)
    from handlers.forward.middleware.counted import counted_attempts

    counting = AccountedDoor(door, queue_name, parts.log, (parts.metrics.door, parts.metrics.queue_of))
    counted = counted_attempts(forward, parts.metrics.queue_of, parts.metrics.door)
    return lambda delivery: handle(counting, delivery, counted)


def calls(forward: Forward, metrics: HandlerMetrics | None) -> Forward:
    """Calls to the gateway, counted where anybody counts."""
    if metrics is None:
        return forward
    from handlers.forward.middleware.counted import counted_calls

    return counted_calls(forward, metrics.queue_of)
