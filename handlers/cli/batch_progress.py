"""The progress of a batch: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar

from handlers.batch.run import Progress
from handlers.cli.deadlines import duration_text

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
