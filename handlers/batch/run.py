"""Run a batch: submit lines, write results to files, resume after crashes.

Three rules prevent duplicate submissions and lost or duplicate results:

- before a line is submitted, the state file records that it may be;
- a result is removed from Redis only after its line is on disk;
- a resumed run first checks the lines that may have been submitted: lines that are live or have a result are not
  submitted again.

A window limits the lines that are submitted and not answered. Memory holds these, and one bit for each line of the
file.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from handlers.backoff import Backoff
from handlers.batch.files import BatchFiles, BatchOutput, BatchState, numbered_lines
from handlers.batch.lines import (
    CANCELLED,
    EXPIRED,
    INVALID,
    BatchLine,
    InvalidLine,
    decode_line,
    encode_error,
    encode_result_line,
)
from handlers.batch.queue import BatchQueue
from handlers.cancellation import end_if_cancelled
from handlers.client.errors import BrokerUnreachable
from handlers.client.redis_broker import FIRST_SECONDS
from handlers.client.results import POLL_PAUSES
from handlers.contract.lenient_json import Malformed
from handlers.contract.result import decode_result
from handlers.redis_store.submit.submissions import MemberParts

SUBMITTED_AT_ONCE = 500
COLLECTED_AT_ONCE = 1_000
JOURNALED_AHEAD = 5_000
"""Lines that one write to the state file marks as possibly submitted."""

_RETRY_PAUSES = (0.01, 1.0)
"""First and longest pause while the broker does not answer, in seconds."""
CANCEL_CHECK_SECONDS = 0.5
UNREACHABLE_SECONDS = 60.0
"""Seconds without an answer of the broker after which the run stops. It can be resumed."""
SHOWN_DAMAGED = 10

T = TypeVar("T")
log = logging.getLogger(__name__)


class BatchOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of a run.

    `window` is the maximum of lines that are submitted and not answered. `late_seconds` is how long the run waits for
    results after the deadline or a cancellation.
    """

    window: int = 20_000
    late_seconds: float = 60.0


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Progress of a batch. `unanswered` counts the submitted lines without a result."""

    total: int
    completed: int
    failed: int
    unanswered: int


class BatchRun:
    """One run of a batch, from the first line or resumed."""

    def __init__(
        self,
        files: BatchFiles,
        state: BatchState,
        queue: BatchQueue,
        *,
        options: BatchOptions,
        report: Callable[[Progress], None],
        report_outage: Callable[[BrokerUnreachable], None],
    ) -> None:
        self._files = files
        self._state = state
        self._queue = queue
        self._options = options
        self._report = report
        self._until_answered = OutageRetry(report_outage).run
        self._output = BatchOutput(files, state.batch)
        for place in self._output.damaged[:SHOWN_DAMAGED]:
            log.warning("%s: damaged line, its request is submitted again", place)
        if len(self._output.damaged) > SHOWN_DAMAGED:
            more = len(self._output.damaged) - SHOWN_DAMAGED
            log.warning(
                "%s, %s: %d more damaged lines, their requests are submitted again", files.out, files.errors, more
            )
        self._waiting: dict[int, str] = {}  # line -> custom id: submitted, or about to be, and not answered
        self._last_result_at = time.monotonic()
        self._is_fed = False
        self._has_collected = asyncio.Event()
        self._cancelled_at: float | None = None
        self._cancelled_lines: set[int] = set()

    async def run(self) -> BatchState:
        """Run to the end and return the final state. An interrupted run keeps all written lines."""
        try:
            await self._queue.follow_clock()
            await self._settle_uncertain()
            await self._feed_and_collect()
            self._finish()
            await self._until_answered(self._queue.delete_results)
        finally:
            with contextlib.suppress(OSError):
                self._output.sync()
                self._save()
            self._output.close()
        return self._state

    async def _feed_and_collect(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._feed(), name="batch-feed")
                group.create_task(self._collect_until_done(), name="batch-collect")
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    # --- lines into the queue

    async def _settle_uncertain(self) -> None:
        """Submit the lines that may have been submitted but were not."""
        lines = list(self._lines(1, self._state.submitted_through))
        for line in lines:
            self._waiting[line.number] = line.custom_id
        live: set[int] = set()
        for start in range(0, len(lines), COLLECTED_AT_ONCE):
            numbers = [line.number for line in lines[start : start + COLLECTED_AT_ONCE]]
            states = await self._until_answered(partial(self._queue.are_live, numbers))
            live.update(number for number, is_live in zip(numbers, states, strict=True) if is_live)
        await self._check_for_cancel()
        # The key that marks a request as live is deleted when its result is stored, or later. So a line that is neither
        # live nor answered was never submitted, or is overdue.
        while await self._collect():
            pass
        missing = [line for line in lines if line.number in self._waiting and line.number not in live]
        for start in range(0, len(missing), SUBMITTED_AT_ONCE):
            await self._submit(missing[start : start + SUBMITTED_AT_ONCE], is_repeated=True)

    async def _feed(self) -> None:
        chunk: list[BatchLine] = []
        most = min(SUBMITTED_AT_ONCE, self._options.window)
        for line in self._lines(self._state.submitted_through + 1):
            chunk.append(line)
            if len(chunk) >= most:
                await self._feed_chunk(chunk)
                chunk = []
        await self._feed_chunk(chunk)
        self._is_fed = True

    async def _feed_chunk(self, chunk: list[BatchLine]) -> None:
        while len(self._waiting) + len(chunk) > self._options.window and self._waiting:
            self._has_collected.clear()
            await self._has_collected.wait()
        if not chunk:
            return
        if chunk[-1].number > self._state.submitted_through:
            self._state.submitted_through = chunk[-1].number + JOURNALED_AHEAD
            self._save()
        await self._submit(chunk, is_repeated=False)
        await asyncio.sleep(0)  # reading a cached file never waits, so let the collector run

    async def _submit(self, lines: list[BatchLine], *, is_repeated: bool) -> None:
        """Submit lines. Write errors for cancelled, overdue and invalid ones."""
        await self._check_for_cancel()
        parts: list[MemberParts] = []
        for line in lines:
            code = self._reason_not_to_submit(line.number)
            prepared = self._queue.prepare(line) if not code else None
            if isinstance(prepared, MemberParts):
                self._waiting[line.number] = line.custom_id
                parts.append(prepared)
                continue
            self._waiting.pop(line.number, None)
            reason = prepared.reason if prepared else "it was not submitted"
            self._write_error(line.number, line.custom_id, code or INVALID, reason)
        attempts = 0

        async def submit() -> None:
            nonlocal attempts
            attempts += 1
            await self._queue.submit(parts, is_repeated=is_repeated or attempts > 1)

        await self._until_answered(submit)
        # A cancellation during the call may have found no request to cancel yet.
        await self._cancel([line.number for line in lines if self._is_cancelled(line.number)])
        self._tell()

    def _is_cancelled(self, number: int) -> bool:
        return self._cancelled_at is not None or number in self._cancelled_lines

    def _reason_not_to_submit(self, number: int) -> str:
        if self._is_cancelled(number):
            return CANCELLED
        return EXPIRED if self._queue.now() >= self._state.deadline else ""

    def _lines(self, first: int, last: int | None = None) -> Iterator[BatchLine]:
        """Requests of lines without output. Writes error lines for invalid ones."""
        for number, text in numbered_lines(Path(self._state.source), first, last):
            if number in self._output.answered:
                continue
            line = decode_line(number, text)
            if isinstance(line, InvalidLine):
                self._write_error(number, line.custom_id, INVALID, f"line {number}: {line.reason}")
            else:
                yield line

    # --- results into the files

    async def _collect_until_done(self) -> None:
        pauses = Backoff(*POLL_PAUSES)
        next_check_at = 0.0
        while not (self._is_fed and not self._waiting):
            if await self._collect():
                pauses.reset()
                await asyncio.sleep(0)
            else:
                await pauses.pause()
                self._give_up_the_late()
            if time.monotonic() >= next_check_at:
                next_check_at = time.monotonic() + CANCEL_CHECK_SECONDS
                await self._check_for_cancel()
                self._tell()

    async def _collect(self) -> int:
        """Write the oldest results to disk, then remove them. Returns how many."""
        texts = await self._until_answered(lambda: self._queue.collect(COLLECTED_AT_ONCE))
        if not texts:
            return 0
        for text in texts:
            self._write_result(text)
        self._output.sync()
        await self._until_answered(lambda: self._queue.drop(len(texts)))
        self._last_result_at = time.monotonic()
        self._has_collected.set()
        self._tell()
        return len(texts)

    def _write_result(self, text: bytes) -> None:
        """Write a result once; skip duplicates and results of other batches."""
        try:
            result = decode_result(text)
        except Malformed:
            self._files.set_aside(text)
            self._state.undecodable += 1
            return
        number = self._queue.number(result.id)
        if number is None or number not in self._waiting:
            return
        custom_id = self._waiting.pop(number)
        line, is_answer = encode_result_line(self._state.batch, number, custom_id, result)
        self._output.write(number, line, is_answer=is_answer)

    def _write_error(self, number: int, custom_id: str, code: str, message: str) -> None:
        text = encode_error(self._state.batch, number, custom_id, code, message)
        self._output.write(number, text, is_answer=False)

    # --- the end

    async def _check_for_cancel(self) -> None:
        """Cancel the batch or lines, if requested since the last call."""
        if self._cancelled_at is not None:
            return
        if self._files.cancel.exists():
            self._cancelled_at = time.monotonic()
            await self._cancel(list(self._waiting))
            return
        new = self._files.lines_to_cancel() - self._cancelled_lines
        self._cancelled_lines |= new
        await self._cancel(sorted(new))

    async def _cancel(self, numbers: Sequence[int]) -> None:
        """Cancel the lines in `numbers` that wait for a result."""
        waiting = [number for number in numbers if number in self._waiting]
        for start in range(0, len(waiting), SUBMITTED_AT_ONCE):
            some = waiting[start : start + SUBMITTED_AT_ONCE]
            await self._until_answered(partial(self._queue.cancel, some))

    def _give_up_the_late(self) -> None:
        """Write errors for lines whose results are long overdue.

        That happens if no poller runs, or if Redis has lost the requests.
        """
        late_seconds = self._options.late_seconds
        if time.monotonic() - self._last_result_at < late_seconds:
            return
        if self._cancelled_at is not None and time.monotonic() - self._cancelled_at > late_seconds:
            code, message = CANCELLED, "cancelled; no result arrived"
        elif self._queue.now() > self._state.deadline + late_seconds:
            code, message = EXPIRED, "no result arrived by the deadline"
        else:
            return
        for number, custom_id in self._waiting.items():
            self._write_error(number, custom_id, code, message)
        self._waiting.clear()
        self._has_collected.set()

    def _finish(self) -> None:
        self._output.sync()
        self._state.outcome = "done" if self._cancelled_at is None else "cancelled"
        self._files.cancel.unlink(missing_ok=True)
        self._files.cancel_lines.unlink(missing_ok=True)

    def _save(self) -> None:
        self._state.completed = self._output.completed
        self._state.failed = self._output.failed
        self._state.kinds = dict(+self._output.kinds)
        self._files.write_state(self._state)

    def _tell(self) -> None:
        self._report(
            Progress(
                total=self._state.total,
                completed=self._output.completed,
                failed=self._output.failed,
                unanswered=len(self._waiting),
            )
        )


class OutageRetry:
    """Repeats calls until the broker answers, for at most a minute; for two seconds if it has never answered."""

    def __init__(self, report_outage: Callable[[BrokerUnreachable], None]) -> None:
        self._report_outage = report_outage
        self._is_known = False
        self._failing = 0  # calls that are repeated now

    async def run(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat `call`. The first failure of an outage is reported, unless the broker has never answered."""
        started_at = time.monotonic()
        backoff = Backoff(*_RETRY_PAUSES)
        while True:
            try:
                answer = await call()
            except BrokerUnreachable as error:
                end_if_cancelled()  # the library may turn a cancellation into a connection error
                limit = UNREACHABLE_SECONDS if self._is_known else FIRST_SECONDS
                if time.monotonic() - started_at >= limit:
                    raise
                if self._is_known and not self._failing:
                    self._report_outage(error)
                self._failing += not backoff.has_failed
            else:
                end_if_cancelled()
                self._is_known = True
                self._failing -= backoff.has_failed
                return answer
            await backoff.pause()
