"""A cancellation that a library has swallowed still ends the loop around it."""

from __future__ import annotations

import asyncio


def stop_if_cancelled() -> None:
    """Raise `CancelledError` if the current task was cancelled, however often that was caught.

    The Redis library loses a cancellation that comes while it connects; a loop would go on for ever.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
