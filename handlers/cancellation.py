"""End a task that was cancelled, also if the awaited call swallowed the cancellation."""

from __future__ import annotations

import asyncio


def end_if_cancelled() -> None:
    """Raise `CancelledError` if the current task was told to end; call it after each call in an endless loop.

    The Redis library sometimes turns a cancellation into a connection error, or returns the reply as if nothing had
    happened. A loop that does not check would continue, and the caller that awaits its end would wait for ever.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
