"""End a cancelled task even if a library has swallowed the cancellation."""

from __future__ import annotations

import asyncio


def end_if_cancelled() -> None:
    """Raise `CancelledError` if the current task was cancelled. Call it in endless loops.

    The Redis library sometimes turns a cancellation into a connection error, or returns the reply as usual. Without
    this check a loop would continue, and its caller would wait for it indefinitely.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
