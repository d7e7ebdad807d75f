"""Tell a waiting user about a missing poller or a closed gate.

The note comes from the pollers' reports on the status board. Without the right to read them, there is no note.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Final

from handlers.cli.flags import QueueFlags
from handlers.cli.shell import printable

if TYPE_CHECKING:
    from handlers.status.report import PollerReport

_NOTED_AFTER_SECONDS: Final = 2.0
"""A result that arrives sooner needs no note."""


@contextlib.asynccontextmanager
async def noting(queue: QueueFlags, name: str) -> AsyncIterator[None]:
    """Print the note if the block still waits after two seconds. `name` is the queue; the note goes to stderr."""

    async def note() -> None:
        await asyncio.sleep(_NOTED_AFTER_SECONDS)
        await print_note(queue, name)

    task = asyncio.create_task(note(), name="serving-note")
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def print_note(queue: QueueFlags, name: str) -> None:
    """Print the note about a queue on stderr, if there is one."""
    if queue.to == "redis" and (text := await _note(queue, name)):
        print(printable(f"note: {text}"), file=sys.stderr, flush=True)


async def _note(queue: QueueFlags, name: str) -> str:
    from handlers.redis_store.admin.status_board import read_snapshots
    from handlers.redis_store.connection import STORE_FAILURES
    from handlers.redis_store.submit.client_access import open_redis
    from handlers.status.overview import fresh_pollers

    redis = open_redis(queue.redis_url, queue.access)
    try:
        snapshots = await read_snapshots(redis)
    except STORE_FAILURES:
        return ""
    finally:
        await redis.aclose()
    texts = {host.decode("utf-8", "replace"): text for host, text in snapshots.items()}
    return serving_text(fresh_pollers(texts, time.time()), name)


def serving_text(pollers: Sequence[PollerReport], name: str) -> str:
    """Why no poller claims requests of the queue `name`; empty if one can."""
    from handlers.status.overview import FRESH_SECONDS

    reasons = []
    for poller in pollers:
        for queue in poller.queues:
            if queue.name != name:
                continue
            gates = [
                *queue.gates,
                *(gate for pool in poller.pools if pool.pool == queue.pool for gate in pool.gates),
            ]
            reasons.append(next((gate.closed_because for gate in gates if gate.closed_because), ""))
    if not reasons:
        return f"no poller reported queue {name} in the last {FRESH_SECONDS:g} s; its requests wait for one"
    return f"the gate of queue {name} is closed: {reasons[0]}" if all(reasons) else ""
