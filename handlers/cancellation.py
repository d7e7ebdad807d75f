"""End a cancelled task even if a library has swallowed the cancellation."""

from __future__ import annotations

import asyncio


def end_if_cancelled() -> None:
    """Raise `CancelledError` if the current task was cancelled. Call it in endless loops.

    The Redis library sometimes turns a cancellation into a connection error, or returns the reply as usual. A loop that
    does not check would continue, and a caller that waits for its end would wait indefinitely.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
