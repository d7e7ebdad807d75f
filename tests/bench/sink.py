"""Pub/Sub's publish call and nothing behind it: so that the push door is measured, not a broker."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator

from tests.servers.process import running_process
from tests.servers.pubsub_broker import running_broker


@contextlib.contextmanager
def running_sink() -> Iterator[str]:
    """A sink on a free port, in a process of its own; gives its `host:port`."""
    command = [sys.executable, "-m", "tests.bench.sink"]
    with running_process(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()


async def _serve() -> None:
    async with running_broker(keeps=False) as broker:
        print(broker.host, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve())
