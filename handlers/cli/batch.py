"""`async-processor batch`: run a file of requests; find and cancel lines."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click
from click.core import ParameterSource

from handlers.cancellation import end_if_cancelled
from handlers.cli.flags import (
    PAYLOAD_APART_FLAG,
    RETRY_QUEUE_FLAG,
    WAIT_REPLICAS_FLAG,
    DeadlineType,
    QueueFlags,
    noting,
    redis_flags,
)
from handlers.cli.shell import (
    ExitCode,
    IdType,
    check_names,
    exit_codes_help,
    exits,
    for_output,
    printable,
    run_async,
    stop_at_signals,
)
from handlers.contract.errors import InvalidSetting
from handlers.number_text import counted, duration_text

if TYPE_CHECKING:
    from handlers.batch.files import BatchFiles, BatchState, FoundLine
    from handlers.batch.queue import BatchQueue
    from handlers.batch.run import Progress
    from handlers.client.async_client import AsyncClient

CANCEL_WINDOW = 100_000
"""Lines that a run reads at a time once it is cancelled; it submits none of them."""

OUT = click.argument("out", type=click.Path(path_type=Path, dir_okay=False))


@click.group("batch")
def batch() -> None:
    """Run files of requests in OpenAI's batch format.

    docs/batch.md describes the format, the files and how a batch resumes.
    """


@batch.command(
    "run",
    epilog=f"""\b
Examples:
  async-processor batch run requests.jsonl --out results.jsonl --deadline 8h
  async-processor batch status results.jsonl
  async-processor batch cancel results.jsonl

After Ctrl-C or a crash, run the same command again. It continues where it stopped: no request is submitted
twice, and no result is lost or written twice.

{exit_codes_help(ExitCode.NOT_YET, ExitCode.CONFLICT)}""",
)
@click.argument(
    "source",
    metavar="SOURCE|-",
    type=click.Path(exists=True, path_type=Path, dir_okay=False, allow_dash=True),
)
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="Output file for answers.")
@click.option(
    "--errors",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Output file for errors.  [default: results.errors.jsonl for --out results.jsonl]",
)
@click.option(
    "--deadline",
    type=DeadlineType(),
    default=timedelta(hours=24),
    help="Deadline of all requests.  [default: 24h]",
)
@click.option(
    "--tier",
    type=click.Choice(["interactive", "async", "batch"]),
    default="batch",
    show_default=True,
    help="Priority class to ask for; ignored unless the poller's ALLOWED_LABELS lists `tier`.",
)
@click.option("--tenant", default="", help="Tenant, for fairness and quotas.")
@click.option(
    "--window",
    type=click.IntRange(1, 1_000_000),
    default=20_000,
    show_default=True,
    help="Maximum number of unanswered requests in the queue at a time.",
)
@RETRY_QUEUE_FLAG
@click.option(
    "--no-check",
    is_flag=True,
    help="Queue requests without checking the whole file first. Then each invalid line gets an error line, and "
    "repeated custom_ids are not detected.",
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
    """Submit a file of requests and collect the answers.

    With `-`, requests are read from stdin into a file beside the output. To resume, pass the same requests again, or
    no input (`</dev/null`). A resumed batch keeps its settings: other values are refused.
    """
    from handlers.batch.files import BatchFiles
    from handlers.batch.start import begin_or_resume

    check_names(source, out, errors)
    _check_outputs(source, {"--out": out, "--errors": errors})
    files = BatchFiles(out, errors)
    stop_at_signals()
    with files.locked(), _spooled(files, source) as requests:
        state = begin_or_resume(
            files,
            requests,
            queue=queue.queue,
            results=queue.results,
            deadline=deadline,
            tier=tier,
            tenant=tenant,
            is_checked=not no_check,
            chosen=_chosen(),
            clock=lambda: run_async(_redis_time(queue)),
        )
        if state.outcome == "running":
            options = {"wait_replicas": wait_replicas, "payload_apart_bytes": payload_apart_bytes}
            state = run_async(_run(files, state, queue, options, window=window, retry_queue=retry_queue))
    _summary(files, state)
    return _exit_code(state)


def _check_outputs(source: Path, outputs: dict[str, Path | None]) -> None:
    for flag, path in outputs.items():
        if path is not None and not path.parent.is_dir():
            raise InvalidSetting(flag, found=str(path), accepted="a file in an existing folder")
        if path is not None and path.exists() and source.exists() and path.samefile(source):
            raise InvalidSetting(flag, found=str(path), accepted="a file that is not the input")


def _chosen() -> set[str]:
    """The flags that are set on the command line or by variables."""
    context = click.get_current_context()
    chosen = {name for name in context.params if context.get_parameter_source(name) is not ParameterSource.DEFAULT}
    return chosen | ({"queue"} if "queue_name" in chosen else set())


@contextlib.contextmanager
def _spooled(files: BatchFiles, source: Path) -> Iterator[Path]:
    """The file with the requests. Requests from stdin are first stored in a file.

    That file is removed if it is empty, or if a signal ends the command before it is complete and checked.
    """
    from handlers.batch.files import open_private
    from handlers.batch.start import EmptyInput

    if str(source) != "-":
        yield source
        return
    is_resumed = files.read_state() is not None
    is_stored = is_resumed and files.input.exists()
    if is_stored and not sys.stdin.isatty() and not files.is_input(sys.stdin.buffer):
        raise files.changed_input("stdin")
    try:
        if not is_stored:
            with open_private(files.input, "wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
            is_stored = True
            if is_resumed:
                _check_piped_again(files)
        yield files.input
    except EmptyInput:
        files.input.unlink()
        raise EmptyInput("stdin") from None
    except (KeyboardInterrupt, SystemExit):
        if not is_stored or files.read_state() is None:
            files.input.unlink(missing_ok=True)
            text = "interrupted while reading stdin; nothing was queued: pipe all requests again"
            print(text, file=sys.stderr)
        raise


def _check_piped_again(files: BatchFiles) -> None:
    """Refuse, and remove, stored requests other than those of the earlier run."""
    from handlers.batch.files import source_print

    state = files.read_state()
    if state is None or state.source_print == source_print(files.input):
        return
    error = files.changed_input("stdin") if files.input.stat().st_size else files.lost_input()
    files.input.unlink()
    raise error


async def _redis_time(queue: QueueFlags) -> float:
    """Unix seconds of Redis, whose clock decides when a deadline has passed; local ones if it does not answer."""
    from handlers.batch.queue import redis_time

    return await redis_time(queue.redis_url, queue.access)


def _queue(queue: QueueFlags, state: BatchState, options: dict[str, Any]) -> BatchQueue:
    from handlers.batch.queue import BatchQueue

    return BatchQueue(queue.redis_url, state, access=queue.access, **options)


async def _run(
    files: BatchFiles,
    state: BatchState,
    flags: QueueFlags,
    options: dict[str, Any],
    *,
    window: int,
    retry_queue: str,
) -> BatchState:
    from handlers.batch.run import BatchOptions, BatchRun

    queue = _queue(flags, state, options)
    try:
        count_retries = partial(queue.waiting_for_retry, retry_queue) if retry_queue else None
        async with BatchProgress(count_retries) as progress, noting(flags, state.queue):
            limits = BatchOptions(window=window)
            return await BatchRun(
                files, state, queue, options=limits, report=progress.update, report_outage=_print_outage
            ).run()
    except asyncio.CancelledError:
        print(f"interrupted: run the same command again to continue ({files.state})", file=sys.stderr)
        raise
    finally:
        await queue.close()


def _print_outage(error: Exception) -> None:
    print(printable(f"waiting for {error}"), file=sys.stderr, flush=True)


@batch.command(
    "status",
    epilog="Exit codes: 0 finished without errors; 1 not finished, with errors, or its output was deleted or "
    "changed; 2 invalid flags or input; 5 the batch was cancelled.",
)
@OUT
@click.option("--json", "is_json", is_flag=True, help="Print one JSON object.")
@exits
def status(*, out: Path, is_json: bool) -> ExitCode:
    """Print the progress of a batch.

    OUT is the batch's output file.
    """
    from handlers.batch.files import WrittenLines

    files, state = _known_batch(out)
    is_running = files.is_running()
    if state.outcome == "running":
        written = WrittenLines(files, state.batch)
        state.completed, state.failed, state.kinds = written.completed, written.failed, dict(+written.kinds)
    lost = files.lost_lines(state)
    what = "running" if is_running else "interrupted" if state.outcome == "running" else state.outcome
    counts = {
        "total": state.total,
        "completed": state.completed,
        "failed": state.failed,
        "kinds": state.kinds,
    }
    if is_json:
        changed = {str(path): reason for path, reason in lost.items()}
        print(json.dumps({"batch": state.batch, "status": what, "deadline": state.deadline, **counts, "lost": changed}))
    else:
        by = datetime.fromtimestamp(state.deadline, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        print(f"batch {state.batch}: {what}, deadline {by}")
        errors = f"{counted(state.failed, 'error')}{_kinds(state)}"
        print(f"{state.completed:,} answered, {errors}, of {counted(state.total, 'request')}")
        named = [f"{path} ({lost[path]})" if path in lost else str(path) for path in (files.out, files.errors)]
        print(f"output {named[0]}, errors {named[1]}")
    return ExitCode.FAILED_REQUESTS if lost and state.outcome == "done" else _exit_code(state)


@batch.command(
    "where",
    epilog="""\b
Exit codes: 0 all were found; 1 a custom_id is unknown; 2 invalid flags; 4 Redis does not answer.""",
)
@OUT
@click.argument("custom_ids", nargs=-1, required=True, metavar="CUSTOM_ID...", type=IdType())
@RETRY_QUEUE_FLAG
@redis_flags
@exits
def where(*, out: Path, custom_ids: tuple[str, ...], queue: QueueFlags, retry_queue: str) -> ExitCode:
    """Print the state of single lines of a batch.

    OUT is the batch's output file. CUSTOM_IDs name the lines.
    """
    from handlers.batch.files import find_lines

    files, state = _known_batch(out)
    found = find_lines(files, state, custom_ids)
    client = replace(queue, queue=state.queue, results=state.results).client(retry_queue=retry_queue)
    return run_async(_where(client, state, custom_ids, found))


async def _where(
    opened: AsyncClient, state: BatchState, custom_ids: tuple[str, ...], found: dict[str, FoundLine]
) -> ExitCode:
    from handlers.cli.where import whereabouts_text

    async with opened as client:
        for custom_id in custom_ids:
            line = found.get(custom_id)
            place = await client.where(line.request_id) if line and not line.written else None
            if place is not None and place.state != "unknown":
                text = whereabouts_text(place, time.time())
                text = text.replace(place.request_id, f"{custom_id} (request {place.request_id})")
            else:
                text = f"{custom_id}  {_without_request(line, state)}"
            print(for_output(text, sys.stdout))
    return ExitCode.DONE if len(found) == len(set(custom_ids)) else ExitCode.FAILED_REQUESTS


def _without_request(line: FoundLine | None, state: BatchState) -> str:
    """The state of a line without a live request."""
    if line is None:
        return f"no line of {state.source} has this custom_id"
    kind = "cancelled before it was queued" if line.is_cancelled else "not queued yet"
    return line.written or f"{kind}: line {line.number:,} of {state.source}"


@batch.command(
    "cancel",
    epilog=f"""\b
Examples:
  async-processor batch cancel results.jsonl
  async-processor batch cancel results.jsonl line-17 line-18

{exit_codes_help(ExitCode.NOT_YET, ExitCode.CONFLICT)}""",
)
@OUT
@click.argument("custom_ids", nargs=-1, metavar="[CUSTOM_ID]...", type=IdType())
@redis_flags
@exits
def cancel(*, out: Path, custom_ids: tuple[str, ...], queue: QueueFlags) -> ExitCode:
    """Cancel a batch, or lines of it.

    OUT is the batch's output file. CUSTOM_IDs name the lines; without any, the whole batch is cancelled. Each cancelled
    line gets an error line, which the process that runs the batch writes. If no process runs it, this command writes
    the error lines of a whole batch; those of single lines are written by the next `batch run`. With CUSTOM_IDs, the
    exit code is 0 if all these lines were cancelled, else 1.
    """
    files, state = _known_batch(out)
    if custom_ids:
        return _cancel_lines(files, state, custom_ids, queue)
    if state.outcome != "running":
        print(f"batch {state.batch}: {state.outcome} already", file=sys.stderr)
        return _exit_code(state)
    files.request_cancel()
    if files.is_running():
        print(f"batch {state.batch}: cancelling, by the process that runs it")
        return ExitCode.DONE
    with files.locked():
        state = run_async(_run(files, state, queue, {}, window=CANCEL_WINDOW, retry_queue=""))
    _summary(files, state)
    return _exit_code(state)


def _cancel_lines(files: BatchFiles, state: BatchState, custom_ids: tuple[str, ...], queue: QueueFlags) -> ExitCode:
    from handlers.batch.files import find_lines

    found = find_lines(files, state, custom_ids)
    open_lines = [line for line in found.values() if not line.written]
    # Write the file first: then the process that runs the batch submits none of these lines.
    if state.outcome == "running":
        files.request_cancel_of([line.number for line in open_lines])
    client = replace(queue, queue=state.queue, results=state.results).client()
    outcomes = run_async(_cancel_open(client, open_lines))
    for custom_id in custom_ids:
        text = outcomes.get(custom_id) or _without_request(found.get(custom_id), state)
        print(for_output(f"{custom_id} {text}", sys.stdout))
    are_cancelled = all(outcomes.get(custom_id, "").startswith("cancelled") for custom_id in custom_ids)
    return ExitCode.DONE if are_cancelled else ExitCode.FAILED_REQUESTS


async def _cancel_open(opened: AsyncClient, lines: Sequence[FoundLine]) -> dict[str, str]:
    """Cancel lines without output; return the outcome by `custom_id`."""
    from handlers.cli.where import not_cancelled_text

    outcomes: dict[str, str] = {}
    async with opened as client:
        were_live = await client.cancel_many([line.request_id for line in lines])
        for line, was_live in zip(lines, were_live, strict=True):
            place = None if was_live else await client.where(line.request_id)
            if place is None:
                outcomes[line.custom_id] = "cancelled"
            elif place.state == "unknown":
                outcomes[line.custom_id] = "cancelled before it was queued"
            else:
                outcomes[line.custom_id] = not_cancelled_text(place)
    return outcomes


def _known_batch(out: Path) -> tuple[BatchFiles, BatchState]:
    from handlers.batch.files import BatchConflict, BatchFiles

    files = BatchFiles(out)
    state = files.read_state()
    if state is None:
        raise BatchConflict(f"{out}: no batch has written this file; start one with `async-processor batch run`")
    return BatchFiles(out, files.errors_of(state)), state


def _summary(files: BatchFiles, state: BatchState) -> None:
    print(
        f"batch {state.batch} {state.outcome}: {state.completed:,} answered ({files.out}), "
        f"{counted(state.failed, 'error')} ({files.errors}){_kinds(state)}",
        file=sys.stderr,
    )
    if state.undecodable:
        print(
            f"{counted(state.undecodable, 'result')} could not be decoded; kept in {files.undecodable}",
            file=sys.stderr,
        )


def _kinds(state: BatchState) -> str:
    """The kinds of errors, most frequent first."""
    kinds = sorted(state.kinds.items(), key=lambda kind: -kind[1])
    return ": " + ", ".join(f"{count:,} {kind}" for kind, count in kinds) if kinds else ""


def _exit_code(state: BatchState) -> ExitCode:
    if state.outcome == "cancelled":
        return ExitCode.CANCELLED
    is_good = state.outcome == "done" and not state.failed
    return ExitCode.DONE if is_good else ExitCode.FAILED_REQUESTS


SHOWN_EVERY_SECONDS = 0.5
LOGGED_EVERY_SECONDS = 30.0
RATE_OVER_SECONDS = 20.0


class BatchProgress:
    """Context manager that shows the progress of a `BatchRun` on stderr."""

    def __init__(self, count_retries: Callable[[], Awaitable[int]] | None) -> None:
        self._count_retries = count_retries
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskProgressColumn, TextColumn
        from rich.progress import Progress as Bar
        from rich.table import Column

        self._console = Console(stderr=True)
        # Not `rich`'s test: with FORCE_COLOR it treats any pipe as a terminal.
        self._has_bar = sys.stderr.isatty() and not self._console.is_dumb_terminal
        self._bar_column = BarColumn(bar_width=1)
        self._last: Progress | None = None
        self._retries = 0
        self._showing: asyncio.Task[None] | None = None
        self._logged_at = time.monotonic()
        self._bar = Bar(
            SpinnerColumn(),
            self._bar_column,
            TaskProgressColumn(table_column=Column(no_wrap=True)),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[text]}", table_column=Column()),
            console=self._console,
            disable=not self._has_bar,
            auto_refresh=False,
            speed_estimate_period=RATE_OVER_SECONDS,
        )
        self._row = self._bar.add_task("batch", total=None, text="")

    async def __aenter__(self) -> Self:
        self._bar.start()
        self._showing = asyncio.create_task(self._show_periodically(), name="batch-progress")
        return self

    async def __aexit__(self, *_error: object) -> None:
        if self._showing is not None:
            self._showing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._showing
        self._show()
        self._bar.stop()

    def update(self, progress: Progress) -> None:
        """Keep the latest report; it is shown at the next interval."""
        self._last = progress

    async def _show_periodically(self) -> None:
        while True:
            await asyncio.sleep(SHOWN_EVERY_SECONDS)
            if self._count_retries is not None:
                with contextlib.suppress(Exception):  # the run itself reports that Redis is unavailable
                    self._retries = await self._count_retries()
                end_if_cancelled()
            self._show()

    def _show(self) -> None:
        if self._last is None:
            return
        done = self._last.completed + self._last.failed
        self._bar.update(self._row, completed=done, total=self._last.total)
        text = self._text(self._last)
        others = f"⠋  100% {self._last.total}/{self._last.total} {text} "
        self._bar_column.bar_width = max(1, self._console.width - len(others))  # only the bar gives way
        self._bar.update(self._row, text=text)
        self._bar.refresh()
        is_due = time.monotonic() - self._logged_at >= LOGGED_EVERY_SECONDS
        if not self._has_bar and is_due:
            self._logged_at = time.monotonic()
            print(f"{done:,} of {self._last.total:,} answered, {text}", file=sys.stderr, flush=True)

    def _text(self, progress: Progress) -> str:
        row = self._bar.tasks[0]
        left = "?" if row.time_remaining is None else duration_text(row.time_remaining)
        return (
            f"{row.speed or 0:,.0f}/s, {progress.unanswered:,} unanswered, {self._retries:,} retrying, "
            f"{counted(progress.failed, 'error')}, {left} left"
        )
