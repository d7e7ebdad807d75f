"""The interface of doors, which decode, forward, settle and record deliveries.

Deliveries and answers are plain headers and bytes, independent of the web framework.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

import msgspec

from handlers.byte_budget import HeldBytes
from handlers.contract.request import Request
from handlers.contract.result import ErrorCode
from handlers.forward.forward import AttemptOptions, Forward
from handlers.forward.middleware.account import account
from handlers.forward.outcome import Answered, Outcome, Retry, result_bytes
from handlers.telemetry.logs import Logger

if TYPE_CHECKING:
    from handlers.forward.middleware.account import QueueOf
    from handlers.telemetry.metrics import DoorMetrics, QueueMetrics


CONNECTION: Final = "async_processor.connection"
"""Key of the `CallerConnection` in the scope of a request."""


class CallerConnection:
    """The connection of a client.

    `has_whole_request`: each request that was read from it has arrived completely. `until_read` returns once the client
    has read most of the data, or has disconnected.
    """

    __slots__ = ("_is_lost", "_task", "has_whole_request", "until_read")

    def __init__(self, until_read: Callable[[], Awaitable[None]]) -> None:
        self._is_lost = False
        self.until_read = until_read
        self.has_whole_request = False
        self._task: asyncio.Task[Any] | None = None

    def is_lost(self) -> bool:
        return self._is_lost

    def lose(self) -> None:
        self._is_lost = True
        if self._task is not None:
            self._task.cancel()

    def ends(self, task: asyncio.Task[Any] | None) -> None:
        """Cancel `task` if the client disconnects from now on (None: nothing)."""
        self._task = task


class Delivery(msgspec.Struct, frozen=True):
    """One HTTP delivery: headers with names in lower case, and the body.

    `held` are the bytes of the byte budget that the delivery uses; None in a process without a budget.
    """

    headers: Sequence[tuple[bytes, bytes]]
    body: bytes
    held: HeldBytes | None = None

    def header(self, name: bytes) -> str:
        """The first header of that name, or an empty string."""
        return next((value.decode("latin-1") for key, value in self.headers if key == name), "")


class Answer(msgspec.Struct, frozen=True):
    """The HTTP answer to a delivery. 200 and 204 ack, 429 and 503 nack."""

    status_code: int
    body: bytes = b""
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)


def plain(status_code: int, text: str, headers: Mapping[str, str] | None = None) -> Answer:
    """An answer with one line of text."""
    return Answer(status_code, (text + "\n").encode(), {"content-type": "text/plain; charset=utf-8", **(headers or {})})


def retry_after(seconds: float) -> dict[str, str]:
    """`Retry-After` in whole seconds, rounded up, at least 1."""
    return {"retry-after": str(max(1, -int(-seconds // 1)))}


class Refusal(msgspec.Struct, frozen=True):
    """The refusal of a caller.

    `status` is 401 (not authenticated), 403 (another account) or 503 (authentication unavailable: retry). `reason` is
    for the log; it never contains anything that the caller sent.
    """

    status: int
    reason: str


ContextT = TypeVar("ContextT")


class Door(Protocol[ContextT]):
    """A kind of delivery; `ContextT` holds the data for settling one."""

    async def decode(self, delivery: Delivery) -> tuple[Request | Answered, ContextT] | Answer:
        """The request in a delivery, its final outcome, or an immediate answer."""
        ...

    def limits(self, context: ContextT) -> AttemptOptions:
        """The attempt options that follow from this delivery."""
        ...

    async def settle(self, context: ContextT, outcome: Outcome) -> Answer:
        """The answer to the caller for an outcome."""
        ...


async def handle(
    door: Door[ContextT], delivery: Delivery, forward: Forward, recorder: DeliveryRecorder[ContextT] | None = None
) -> Answer:
    """The answer to one delivery. Never raises: invalid input is a final result or a 4xx."""
    began_at = time.perf_counter()
    decoded = await door.decode(delivery)
    if isinstance(decoded, Answer):
        return decoded
    request, context = decoded
    if isinstance(request, Answered):
        outcome: Outcome = request
    else:
        limits, held = door.limits(context), delivery.held
        if held is not None:
            limits = msgspec.structs.replace(limits, ask_for_room=held.answer.ask)
        outcome = await forward(request, limits)
        if held is not None:
            await held.room_for_result(result_bytes(outcome))
    decided_at = time.perf_counter()
    answer = await door.settle(context, outcome)
    if recorder is not None:
        recorder.note(context, request, outcome, answer, began_at=began_at, decided_at=decided_at)
    return answer


NOT_RECORDED: Final = "not_recorded"
_OK: Final = range(200, 300)


class DeliveryRecorder(Generic[ContextT]):
    """Records the deliveries of one door in metrics and logs.

    `queue_name` returns a delivery's queue or subscription. `metrics` are the door's series and those of queues that
    no poller counts; without them, deliveries are only logged.
    """

    def __init__(
        self,
        queue_name: Callable[[ContextT], str],
        log: Logger,
        metrics: tuple[DoorMetrics, QueueOf] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._queue_name = queue_name
        self._log = log
        self._metrics = metrics
        self._clock = clock

    def note(
        self,
        context: ContextT,
        request: Request | Answered,
        outcome: Outcome,
        answer: Answer,
        *,
        began_at: float,
        decided_at: float,
    ) -> None:
        """Record a settled delivery; times are of `time.perf_counter`. An unpublished result counts as a retry."""
        queue_name = self._queue_name(context)
        is_recorded = answer.status_code in _OK
        queue = self._count(queue_name, outcome, is_recorded=is_recorded, began_at=began_at, decided_at=decided_at)
        seconds = decided_at - began_at
        if isinstance(outcome, Answered) and not is_recorded:
            self._log.warning(
                "result not recorded",
                id=outcome.result.id,
                queue=queue_name,
                outcome="retry",
                reason=NOT_RECORDED,
                status=answer.status_code,
            )
        elif isinstance(request, Request):
            account(request, outcome, now=self._clock(), seconds=seconds, log=self._log, metrics=queue)
        else:
            result = request.result
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

    def _count(
        self, queue_name: str, outcome: Outcome, *, is_recorded: bool, began_at: float, decided_at: float
    ) -> QueueMetrics | None:
        """Count the delivery; return the series of its queue, unless a poller counts it."""
        if self._metrics is None:
            return None
        (door, queue_of), settled_at = self._metrics, time.perf_counter()
        queue = queue_of(queue_name)
        word = "retry" if isinstance(outcome, Retry) else "answered" if is_recorded else NOT_RECORDED
        door.settled(word, settled_at - began_at)
        if queue is not None and isinstance(outcome, Answered):
            if is_recorded:
                queue.published(settled_at - decided_at)
                queue.dead_lettered(int(outcome.result.error_code == ErrorCode.UNDELIVERABLE))
            else:
                queue.retried(NOT_RECORDED)
        return queue
