"""`async-processor poll`: the poller."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from handlers.contract.errors import InvalidSetting

if TYPE_CHECKING:
    from handlers.wiring.poller import PollerApp


@click.command(
    epilog="""\b
Examples:
  REDIS_URL=redis://redis:6379 HANDLER_URL=http://handlers async-processor poll
  REDIS_URL=redis://redis:6379 IGW_BASE_URL=http://gateway async-processor poll    (handler in this process)

Exit codes: 0 stopped by SIGTERM or SIGINT and drained; 2 a wrong setting; 1 anything else.""",
)
@click.option("--workers", type=click.IntRange(min=1), help="Requests in flight at a time.  [env: WORKERS]")
@click.option("--handler-url", help="The dispatch door.  [env: HANDLER_URL]")
def poll(workers: int | None, handler_url: str | None) -> None:
    """Claim requests from Redis, send them to the handler, and write their results. Settings: see docs/settings.md."""
    import uvloop

    from handlers.cli.main import fail
    from handlers.settings.settings import load_settings
    from handlers.telemetry.logs import configure_logs
    from handlers.wiring.poller import PollerApp

    given = {"WORKERS": workers, "HANDLER_URL": handler_url}
    flags = {name: str(value) for name, value in given.items() if value is not None}
    try:
        variables = {**os.environ, **flags}  # noqa: TID251  # the process's entry
        settings = load_settings(variables)
        configure_logs(settings.log_options)
        uvloop.run(_run(lambda: PollerApp(settings, variables)))
    except InvalidSetting as error:
        fail(error)


async def _run(build: Callable[[], PollerApp]) -> None:
    app = build()

    def stop() -> None:
        if not app.has_begun:
            os._exit(0)  # nothing is claimed yet, and a start may wait long for Redis
        app.stop()

    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop)
    await app.run()
