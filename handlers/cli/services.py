"""The commands `serve` (one door), `poll` (the poller) and `status` (status page)."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from handlers.cli.shell import end_of_start
from handlers.contract.errors import InvalidSetting

if TYPE_CHECKING:
    from handlers.wiring.poller import PollerApp


@click.command(
    epilog="""\b
Examples:
  IGW_BASE_URL=http://gateway:80 async-processor serve --target dispatch
  PUSH_AUDIENCE=… PUSH_SERVICE_ACCOUNT=… async-processor serve --target pubsub_push --port 8080

Exit codes: 0 stopped by SIGTERM or SIGINT after the last request; 2 an invalid setting or a port in use;
1 anything else.""",
)
@click.option("--target", type=click.Choice(["dispatch", "pubsub_push"]), help="Door to serve.  [env: FUNCTION_TARGET]")
@click.option("--port", type=click.IntRange(0, 65_535), help="Port; 0 picks a free one.  [env: PORT]")
@click.option("--host", help="Address to listen on.  [env: HOST]")
def serve(target: str | None, port: int | None, host: str | None) -> None:
    """Serve one door, an HTTP endpoint that takes requests.

    `dispatch` takes CloudEvents, `pubsub_push` takes Pub/Sub pushes. All other settings come from the environment and
    CONFIG_FILE: see docs/settings.md.
    """
    from handlers.cli.main import fail_start
    from handlers.serving.server import serve as run
    from handlers.settings.settings import load_settings
    from handlers.telemetry.logs import configure_logs, get_logger

    given = {"FUNCTION_TARGET": target, "PORT": port, "HOST": host}
    flags = {name: str(value) for name, value in given.items() if value is not None}
    variables = {**os.environ, **flags}  # noqa: TID251  # the process's entry
    try:
        settings = load_settings(variables)
        env = settings.env
        check_free_port("PORT", env.host, env.port)
        configure_logs(settings.log_options)
        log = get_logger("serve")
        target = env.function_target

        def ready(port: int) -> None:
            end_of_start()
            log.info("ready", target=target, port=port)

        run(variables, settings, target, ready)
    except InvalidSetting as error:
        fail_start(variables, error)


@click.command(
    epilog="""\b
Examples:
  REDIS_URL=redis://redis:6379 HANDLER_URL=http://handlers async-processor poll
  REDIS_URL=redis://redis:6379 IGW_BASE_URL=http://gateway async-processor poll    (handler in this process)

Exit codes: 0 stopped by SIGTERM or SIGINT and drained; 2 an invalid setting or a port in use; 1 anything else.""",
)
@click.option(
    "--workers", type=click.IntRange(min=1), help="Maximum number of requests in flight at once.  [env: WORKERS]"
)
@click.option("--handler-url", help="URL of the dispatch door.  [env: HANDLER_URL]")
def poll(workers: int | None, handler_url: str | None) -> None:
    """Claim requests from Redis, send them, and write their results.

    All other settings come from the environment and CONFIG_FILE: see docs/settings.md.
    """
    import uvloop

    from handlers.cli.main import fail_start
    from handlers.settings.settings import load_settings
    from handlers.telemetry.logs import configure_logs
    from handlers.wiring.poller import PollerApp

    given = {"WORKERS": workers, "HANDLER_URL": handler_url}
    flags = {name: str(value) for name, value in given.items() if value is not None}
    variables = {**os.environ, **flags}  # noqa: TID251  # the process's entry
    try:
        settings = load_settings(variables)
        check_free_port("METRICS_PORT", settings.env.host, settings.env.metrics_port)
        configure_logs(settings.log_options)
        uvloop.run(_run(lambda: PollerApp(settings, variables)))
    except InvalidSetting as error:
        fail_start(variables, error)


async def _run(build: Callable[[], PollerApp]) -> None:
    app = build()
    end_of_start()

    def stop() -> None:
        if not app.has_begun:
            os._exit(0)  # nothing is claimed yet, and the start may wait for Redis for a long time
        app.stop()

    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop)
    await app.run()


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 in a pod.")
@click.option("--port", type=click.IntRange(1, 65_535), default=8090, show_default=True, help="Port.")
@click.option(
    "--allow-host",
    "also_named",
    multiple=True,
    metavar="NAME",
    help="Another host name of the page, besides localhost, --host and STATUS_HOSTS; may be repeated. Other names "
    "get 421.",
)
def status(host: str, port: int, also_named: tuple[str, ...]) -> None:
    """Serve the status page of queues, gates and dead letters.

    It reads REDIS_URL and the other settings of the poller. It is read-only unless STATUS_TOKEN_FILE holds a token,
    with which dead letters can be requeued or dropped. It has no sign-in: for a cluster, see keda/README.md.
    """
    from handlers.cli.main import fail_start
    from handlers.serving.status_server import serve_status
    from handlers.settings.settings import load_settings
    from handlers.telemetry.logs import configure_logs
    from handlers.wiring.status_page import CurrentSettings, open_pages, respond

    variables = dict(os.environ)  # noqa: TID251  # the process's entry
    try:
        settings = load_settings(variables)
        check_free_port("--port", host, port)
        configure_logs(settings.log_options)
        open_pages(settings, host, also_named)
    except InvalidSetting as error:
        fail_start(variables, error)
    current = CurrentSettings(variables)
    serve_status(
        lambda request: respond(request, current.get()),
        host=host,
        port=port,
        receive_seconds=settings.env.receive_timeout_seconds,
        on_ready=lambda: click.echo(f"status page on http://{host}:{port}/"),
    )


def check_free_port(setting: str, host: str, port: int) -> None:
    """Raise `InvalidSetting` if this process cannot listen there. Port 0 is always free."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        is_in_use = error.errno == errno.EADDRINUSE
        found = f"{port}, which is in use" if is_in_use else f"{port} on {host} ({error.strerror or error})"
        raise InvalidSetting(setting, found=found, accepted="a free port") from None
