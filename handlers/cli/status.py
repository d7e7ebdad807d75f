"""`async-processor status`: the status page in a browser."""

from __future__ import annotations

import os
import socket

import click

from handlers.contract.errors import InvalidSetting

_THREADS = 8
"""Views at a time; each mostly waits for Redis."""


@click.command()
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 in a pod."
)
@click.option("--port", type=click.IntRange(1, 65_535), default=8090, show_default=True)
@click.option(
    "--allow-host",
    "also_named",
    multiple=True,
    metavar="NAME",
    help="Host name under which the page may be requested, besides localhost, --host and STATUS_HOSTS; others get 421.",
)
def status(host: str, port: int, also_named: tuple[str, ...]) -> None:
    """Serve the status page: queues, reasons of closed gates, dead letters, and a search by id.

    Reads REDIS_URL and the other settings of the poller. Read-only, unless STATUS_TOKEN_FILE names a token
    that dead letters can be requeued or dropped with. It has no sign-in: for a cluster, see keda/README.md.
    """
    import functions_framework
    from functions_framework._http import create_server

    import handlers.status_main
    from handlers.cli.main import fail
    from handlers.settings.settings import load_settings
    from handlers.telemetry.logs import configure_logs
    from handlers.wiring.status_page import open_pages

    try:
        settings = load_settings(os.environ)  # noqa: TID251  # the process's entry
        configure_logs(settings.log_options)
        open_pages(settings, host, also_named)
    except InvalidSetting as error:
        fail(error)
    app = functions_framework.create_app("status", handlers.status_main.__file__, "http")  # type: ignore[no-untyped-call]  # untyped
    # The framework writes its target into the environment, where our settings would read it as a door's name.
    os.environ.pop("FUNCTION_TARGET", None)  # noqa: TID251  # the process's entry
    if reason := _taken(host, port):
        fail(OSError(f"--port: {host}:{port} cannot be listened on ({reason}); choose another --port"))
    click.echo(f"status page on http://{host}:{port}/")
    # One process, because the framework would read WORKERS, the poller's slots, as a number of processes.
    server = create_server(  # type: ignore[no-untyped-call]  # untyped
        app, debug=False, workers=1, threads=_THREADS, control_socket_disable=True
    )
    server.run(host, port)


def _taken(host: str, port: int) -> str:
    """Why the address cannot be used; empty if it can."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        return error.strerror or str(error)
    return ""
