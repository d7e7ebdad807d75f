"""Record the deliveries of any door in metrics and logs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Generic

import msgspec

from handlers.contract.request import Request
from handlers.contract.result import ErrorCode
from handlers.doors.door import Answer, ContextT, Delivery, Door
from handlers.forward.forward import AttemptOptions
from handlers.forward.middleware.account import account
from handlers.forward.outcome import Answered, Outcome, Retry
from handlers.telemetry.logs import Logger

if TYPE_CHECKING:
    from handlers.forward.middleware.account import QueueOf
    from handlers.telemetry.metrics import DoorMetrics

NOT_RECORDED: Final = "not_recorded"
_OK: Final = range(200, 300)


class Counted(msgspec.Struct, Generic[ContextT], frozen=True):
    """A delivery's context, its request if readable, and its arrival (`time.perf_counter`)."""

    context: ContextT
    request: Request | None
    began_at: float


class AccountedDoor(Generic[ContextT]):
    """Records the deliveries of `door`.

    `queue_name` returns a delivery's queue or subscription. `metrics` are the door's series and those of queues that
    no poller counts; without them, deliveries are only logged.
    """

    def __init__(
        self,
        door: Door[ContextT],
        queue_name: Callable[[ContextT], str],
        log: Logger,
        metrics: tuple[DoorMetrics, QueueOf] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._door = door
        self._queue_name = queue_name
        self._log = log
        self._metrics = metrics
        self._clock = clock

    async def decode(self, delivery: Delivery) -> tuple[Request | Answered, Counted[ContextT]] | Answer:
        """Decode a delivery; keep its time of arrival and its request."""
        began_at = time.perf_counter()
        decoded = await self._door.decode(delivery)
        if isinstance(decoded, Answer):
            return decoded
        request, context = decoded
        return request, Counted(context, request if isinstance(request, Request) else None, began_at)

    def limits(self, context: Counted[ContextT]) -> AttemptOptions:
        return self._door.limits(context.context)

    async def settle(self, context: Counted[ContextT], outcome: Outcome) -> Answer:
        """Settle and record a delivery. An unpublished result counts as a retry."""
        decided_at = time.perf_counter()
        answer = await self._door.settle(context.context, outcome)
        settled_at = time.perf_counter()
        is_recorded = answer.status_code in _OK
        self._count(context, outcome, is_recorded, decided_at, settled_at)
        if isinstance(outcome, Answered) and not is_recorded:
            self._log.warning(
                "result not recorded",
                id=outcome.result.id,
                queue=self._queue_name(context.context),
                outcome="retry",
                reason=NOT_RECORDED,
                status=answer.status_code,
            )
        else:
            self._account(context, outcome, decided_at - context.began_at)
        return answer

    def _count(
        self,
        context: Counted[ContextT],
        outcome: Outcome,
        is_recorded: bool,
        decided_at: float,
        settled_at: float,
    ) -> None:
        if self._metrics is None:
            return
        door, queue_of = self._metrics
        queue = queue_of(self._queue_name(context.context))
        word = "retry" if isinstance(outcome, Retry) else "answered" if is_recorded else NOT_RECORDED
        door.settled(word, settled_at - context.began_at)
        if queue is None or isinstance(outcome, Retry):
            return
        if not is_recorded:
            queue.retried(NOT_RECORDED)
            return
        queue.published(settled_at - decided_at)
        if outcome.result.error_code == ErrorCode.UNDELIVERABLE:
            queue.dead_lettered(1)

    def _account(self, context: Counted[ContextT], outcome: Outcome, seconds: float) -> None:
        """Log the outcome; count it unless a poller counts its queue."""
        queue_name = self._queue_name(context.context)
        queue = self._metrics[1](queue_name) if self._metrics else None
        if context.request is not None:
            account(context.request, outcome, now=self._clock(), seconds=seconds, log=self._log, metrics=queue)
        elif isinstance(outcome, Answered):
            result = outcome.result
            if queue is not None:
                queue.answered(result.status_code, result.error_code, 0)
            self._log.info(
                "answered",
                id=result.id,
                queue=queue_name,
                outcome="failed",
                reason=result.error_code,
                error=result.error_message,
                seconds=round(seconds, 3),
            )
