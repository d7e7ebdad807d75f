"""`async-processor batch`: run a file of requests, see how far it is, cancel it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import click

from handlers.cli.flags import (
    PAYLOAD_APART_FLAG,
    WAIT_REPLICAS_FLAG,
    DeadlineType,
    QueueFlags,
    duration_text,
    redis_flags,
)
from handlers.cli.shell import EXIT_CODES_HELP, ExitCode, check_names, exits

if TYPE_CHECKING:
    from handlers.batch.files import BatchFiles, BatchState
    from handlers.batch.queue import BatchQueue
    from handlers.batch.run import Progress

CANCEL_WINDOW = 100_000
"""Lines that a cancelling run looks at together; it submits none."""

OUT = click.argument("out", type=click.Path(path_type=Path, dir_okay=False))


@click.group("batch")
def batch() -> None:
    """Run files of requests in OpenAI's batch format."""


@batch.command(
    "run",
    epilog=f"""\b
Examples:
  async-processor batch run requests.jsonl --out results.jsonl --deadline 8h
  async-processor batch status results.jsonl
  async-processor batch cancel results.jsonl

Run the same command again after Ctrl-C or a crash: it goes on where it was, submits nothing twice and
loses and doubles no result. {EXIT_CODES_HELP} 5 cancelled.""",
)
@click.argument(
    "source",
    metavar="SOURCE|-",
    type=click.Path(exists=True, path_type=Path, dir_okay=False, allow_dash=True),
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="Takes the answers."
)
@click.option(
    "--errors",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Takes the errors.  [default: <out>.errors.jsonl]",
)
@click.option(
    "--deadline",
    type=DeadlineType(),
    default=timedelta(hours=24),
    help="By when all must be answered.  [default: 24h]",
)
@click.option(
    "--tier",
    type=click.Choice(["interactive", "async", "batch"]),
    default="batch",
    show_default=True,
    help="Lane of the requests.",
)
@click.option("--tenant", default="", help="Who asks, for fairness and quotas.")
@click.option(
    "--window",
    type=click.IntRange(1, 1_000_000),
    default=20_000,
    show_default=True,
    help="Requests that may be queued and not answered at a time.",
)
@click.option(
    "--retry-queue",
    envvar="RETRY_QUEUE_NAME",
    default="retry-sortedset",
    show_envvar=True,
    help="Sorted set of retries, for the progress line.",
)
@click.option(
    "--no-check",
    is_flag=True,
    help="Queue without checking the whole file first; each faulty line gets an error line.",
)
@WAIT_REPLICAS_FLAG
@PAYLOAD_APART_FLAG
@redis_flags
@exits
def run(
    *,
    source: Path,
    out: Path,
    errors: Path | None,
    deadline: timedelta | datetime | float,
    tier: str,
    tenant: str,
    window: int,
    retry_queue: str,
    no_check: bool,
    wait_replicas: int,
    payload_apart_bytes: int | None,
    queue: QueueFlags,
) -> ExitCode:
    """Submit the requests of SOURCE and collect their answers; `-` is stdin, kept beside the output."""
    from handlers.batch.files import BatchFiles
    from handlers.batch.start import begin_or_resume

    check_names(source, out, errors)
    files = BatchFiles(out, errors)
    with files.locked():
        if str(source) == "-":
            source = _spooled(files)
        state = begin_or_resume(
            files,
            source,
            queue=queue.queue,
            results=queue.results,
            deadline=deadline,
            tier=tier,
            tenant=tenant,
            is_checked=not no_check,
        )
        if state.outcome == "running":
            options = {"wait_replicas": wait_replicas, "payload_apart_bytes": payload_apart_bytes}
            state = asyncio.run(
                _run(files, state, partial(_queue, queue, state, options), window, retry_queue)
            )
    _summary(files, state)
    return _exit_code(state)


def _spooled(files: BatchFiles) -> Path:
    """The file that keeps the requests of stdin; of an earlier run, if there was one."""
    from handlers.batch.files import open_private

    if files.read_state() is None or not files.input.exists():
        with open_private(files.input, "wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
    return files.input


def _queue(queue: QueueFlags, state: BatchState, options: dict[str, Any]) -> BatchQueue:
    from handlers.batch.queue import BatchQueue

    return BatchQueue(queue.redis_url, state, access=queue.access, **options)


async def _run(
    files: BatchFiles, state: BatchState, open_queue: Callable[[], BatchQueue], window: int, retry_queue: str
) -> BatchState:
    from handlers.batch.run import BatchOptions, BatchRun

    queue = open_queue()
    try:
        count_retries = partial(queue.waiting_for_retry, retry_queue) if retry_queue else None
        async with BatchProgress(count_retries) as progress:
            options = BatchOptions(window=window)
            return await BatchRun(files, state, queue, options=options, report=progress.update).run()
    except asyncio.CancelledError:
        print(f"interrupted: run the same command again to go on ({files.state})", file=sys.stderr)
        raise
    finally:
        await queue.close()


@batch.command("status", epilog=EXIT_CODES_HELP)
@OUT
@click.option("--json", "is_json", is_flag=True, help="One JSON object.")
@exits
def status(*, out: Path, is_json: bool) -> ExitCode:
    """Tell how far the batch of OUT (its output file) is; 1 while it has errors or is not finished."""
    from handlers.batch.files import BatchOutput

    files, state = _known_batch(out)
    is_running = files.is_running()
    if not is_running and state.outcome == "running":
        with files.locked():
            output = BatchOutput(files, state.batch)  # counts what a run that was cut off has written
            output.close()
        state.completed, state.failed, state.kinds = output.completed, output.failed, dict(+output.kinds)
    what = "running" if is_running else "interrupted" if state.outcome == "running" else state.outcome
    counts = {
        "total": state.total,
        "completed": state.completed,
        "failed": state.failed,
        "kinds": state.kinds,
    }
    if is_json:
        print(json.dumps({"batch": state.batch, "status": what, "deadline": state.deadline, **counts}))
    else:
        by = datetime.fromtimestamp(state.deadline, UTC).isoformat(timespec="seconds")
        print(f"batch {state.batch}: {what}, to be answered by {by}")
        errors = f"{state.failed:,} errors{_kinds(state)}"
        print(f"{state.completed:,} answered, {errors}, of {state.total:,} requests")
        print(f"output {files.out}, errors {files.errors}")
    return _exit_code(state)


@batch.command("cancel", epilog=EXIT_CODES_HELP)
@OUT
@redis_flags
@exits
def cancel(*, out: Path, queue: QueueFlags) -> ExitCode:
    """Cancel the batch of OUT (its output file): what is not answered gets an error line.

    Where no process runs the batch, this one collects what is left.
    """
    files, state = _known_batch(out)
    if state.outcome != "running":
        print(f"batch {state.batch}: {state.outcome} already", file=sys.stderr)
        return _exit_code(state)
    files.request_cancel()
    if files.is_running():
        print(f"batch {state.batch}: its process is told to cancel it")
        return ExitCode.DONE
    with files.locked():
        state = asyncio.run(_run(files, state, partial(_queue, queue, state, {}), CANCEL_WINDOW, ""))
    _summary(files, state)
    return _exit_code(state)


def _known_batch(out: Path) -> tuple[BatchFiles, BatchState]:
    from handlers.batch.files import BatchConflict, BatchFiles

    files = BatchFiles(out)
    state = files.read_state()
    if state is None:
        raise BatchConflict(
            f"{out}: no batch has written this file; start one with `async-processor batch run`"
        )
    return BatchFiles(out, Path(state.errors)), state


def _summary(files: BatchFiles, state: BatchState) -> None:
    print(
        f"batch {state.batch} {state.outcome}: {state.completed:,} answered ({files.out}), "
        f"{state.failed:,} errors ({files.errors}){_kinds(state)}",
        file=sys.stderr,
    )
    if state.undecodable:
        print(
            f"{state.undecodable:,} results could not be decoded; kept in {files.undecodable}",
            file=sys.stderr,
        )


def _kinds(state: BatchState) -> str:
    """The kinds of errors, the most frequent first."""
    kinds = sorted(state.kinds.items(), key=lambda kind: -kind[1])
    return ": " + ", ".join(f"{count:,} {kind}" for kind, count in kinds) if kinds else ""


def _exit_code(state: BatchState) -> ExitCode:
    if state.outcome == "cancelled":
        return ExitCode.CANCELLED
    is_good = state.outcome == "done" and not state.failed
    return ExitCode.DONE if is_good else ExitCode.FAILED_REQUESTS


SHOWN_EVERY_SECONDS = 0.5
LOGGED_EVERY_SECONDS = 60.0
RATE_OVER_SECONDS = 20.0


class Rate:
    """Requests a second over the last while; times are in seconds of any clock that only goes up."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, int]] = deque()

    def add(self, now: float, count: int) -> None:
        """`count` requests are done at `now`."""
        self._points.append((now, count))
        while len(self._points) > 2 and now - self._points[0][0] > RATE_OVER_SECONDS:
            self._points.popleft()

    def per_second(self) -> float:
        """The rate; 0 where it is not known yet."""
        if len(self._points) < 2:
            return 0.0
        (began, before), (ended, after) = self._points[0], self._points[-1]
        return (after - before) / (ended - began) if ended > began else 0.0


class BatchProgress:
    """Shows what a `BatchRun` reports, to stderr; use it as a context manager."""

    def __init__(self, count_retries: Callable[[], Awaitable[int]] | None) -> None:
        self._count_retries = count_retries
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskProgressColumn, TextColumn
        from rich.progress import Progress as Bar

        self._console = Console(stderr=True)
        self._last: Progress | None = None
        self._rate = Rate()
        self._retries = 0
        self._showing: asyncio.Task[None] | None = None
        self._logged_at = time.monotonic()
        self._bar = Bar(
            SpinnerColumn(),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            console=self._console,
            disable=not self._console.is_terminal,
            auto_refresh=False,
        )
        self._row = self._bar.add_task("batch", total=None, text="")

    async def __aenter__(self) -> Self:
        self._bar.start()
        self._showing = asyncio.create_task(self._show_for_ever(), name="batch-progress")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._showing is not None:
            self._showing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._showing
        self._show()
        self._bar.stop()

    def update(self, progress: Progress) -> None:
        """Take what the run reports; it is shown when the time has come."""
        self._last = progress

    async def _show_for_ever(self) -> None:
        while True:
            await asyncio.sleep(SHOWN_EVERY_SECONDS)
            if self._count_retries is not None:
                with contextlib.suppress(Exception):  # the run itself tells when Redis is gone
                    self._retries = await self._count_retries()
            self._show()

    def _show(self) -> None:
        if self._last is None:
            return
        done = self._last.completed + self._last.failed
        self._rate.add(time.monotonic(), done)
        text = self._text(self._last, done)
        self._bar.update(self._row, completed=done, total=self._last.total, text=text)
        self._bar.refresh()
        is_due = time.monotonic() - self._logged_at >= LOGGED_EVERY_SECONDS
        if not self._console.is_terminal and is_due:
            self._logged_at = time.monotonic()
            print(f"{done:,} of {self._last.total:,}, {text}", file=sys.stderr, flush=True)

    def _text(self, progress: Progress, done: int) -> str:
        rate = self._rate.per_second()
        left = duration_text((progress.total - done) / rate) if rate > 0 else "?"
        return (
            f"{rate:,.0f}/s, {progress.in_flight:,} in flight, {self._retries:,} retrying, "
            f"{progress.failed:,} errors, {left} left"
        )
