"""A Pub/Sub server that only accepts publishes, so that a benchmark measures the push door."""

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
    """A sink on a free port, in its own process; yields its `host:port`."""
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
