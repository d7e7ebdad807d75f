"""End tasks: cancelled ones that a library keeps alive, and closes that take too long."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from handlers.telemetry.logs import Logger


def end_if_cancelled() -> None:
    """Raise `CancelledError` if the current task was cancelled. Call it in every loop that may never end by itself.

    A library may turn a cancellation into an error, such as a lost connection, or may return as usual. Without this
    check a loop would continue, and its caller would wait for it indefinitely.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


EACH_SECONDS: Final = 1.2
"""Time limit for one close, which normally takes milliseconds."""
ALL_SECONDS: Final = 2.0
"""Time limit for all. With the wait for the last settlements (0.9 s), an exit takes less than 3 s."""

Close = Callable[[], Awaitable[object]]


async def close_in_time(
    closers: Iterable[Close],
    log: Logger,
    *,
    each_seconds: float = EACH_SECONDS,
) -> None:
    """Call `closers` in order. Failures and timeouts are logged and stop nothing."""
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + ALL_SECONDS
    for close in closers:
        closing = asyncio.ensure_future(close())
        seconds = max(0.0, min(each_seconds, ends_at - loop.time()))
        try:
            _, late = await asyncio.wait({closing}, timeout=seconds)
        except asyncio.CancelledError:
            closing.cancel()
            raise
        if late:
            closing.cancel()
            closing.add_done_callback(_seen)
            log.warning("close abandoned", what=_name(close), seconds=round(seconds, 1))
        elif not closing.cancelled() and (error := closing.exception()):
            log.warning("close failed", what=_name(close), error=repr(error))


def _seen(closing: asyncio.Future[object]) -> None:
    """Retrieve an abandoned close's error, which asyncio would log otherwise."""
    if not closing.cancelled():
        closing.exception()


def _name(close: Close) -> str:
    return getattr(close, "__qualname__", type(close).__name__)
