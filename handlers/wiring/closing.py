"""Closes what a process has open, within a time of our own: no library's time limit decides how long an exit takes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from handlers.telemetry.logs import Logger

EACH_SECONDS: Final = 1.2
"""How long one close may take: a peer that answers at all does so in milliseconds."""
ALL_SECONDS: Final = 2.0
"""How long all together may take; with the last settlements (0.9 s) an exit stays below 3 s."""

Close = Callable[[], Awaitable[object]]


async def close_in_time(
    closers: Iterable[Close],
    log: Logger,
    *,
    each_seconds: float = EACH_SECONDS,
    all_seconds: float = ALL_SECONDS,
) -> None:
    """Call `closers` in order; one that fails or takes too long is logged, and the next one follows."""
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + all_seconds
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
    """An abandoned close may still fail; its error has been logged as a late one."""
    if not closing.cancelled():
        closing.exception()


def _name(close: Close) -> str:
    return getattr(close, "__qualname__", type(close).__name__)
