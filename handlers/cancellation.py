"""A cancellation that a library has swallowed still ends the loop around it."""

from __future__ import annotations

import asyncio


def end_if_cancelled() -> None:
    """Raise a cancellation that got lost; call it after each call to Redis in a loop that ends by one.

    Now and then the Redis library answers a cancellation with a connection error, or just with the reply. The
    loop that has been told to end would go on, and whoever waits for its end would wait for ever.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
