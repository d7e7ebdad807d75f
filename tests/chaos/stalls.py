"""Measure how long a process waits for a core during a run."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import Connection
from types import TracebackType

_SLEEP_SECONDS = 0.005


class Stalls:
    """A process that sleeps repeatedly and remembers its longest delay."""

    worst_seconds = 0.0
    """Set at the end."""

    def __enter__(self) -> Stalls:
        context = multiprocessing.get_context("spawn")
        self._end, theirs = context.Pipe()
        self._process = context.Process(target=_measure, args=(theirs,), daemon=True)
        self._process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.send(None)
        self.worst_seconds = self._end.recv()
        self._process.join()
        self._process.close()
        self._end.close()


def _measure(end: Connection) -> None:
    worst, woke = 0.0, time.monotonic()
    while not end.poll(_SLEEP_SECONDS):
        now = time.monotonic()
        worst, woke = max(worst, now - woke - _SLEEP_SECONDS), now
    end.send(worst)
