"""`async-processor serve`: one door under uvicorn."""

from __future__ import annotations

import os

import click

from handlers.contract.errors import InvalidSetting


@click.command(
    epilog="""\b
Examples:
  IGW_BASE_URL=http://gateway:80 async-processor serve --target dispatch
  PUSH_AUDIENCE=… PUSH_SERVICE_ACCOUNT=… async-processor serve --target pubsub_push --port 8080

Exit codes: 0 stopped by SIGTERM or SIGINT after the last request; 2 a wrong setting; 1 anything else.""",
)
@click.option(
    "--target", type=click.Choice(["dispatch", "pubsub_push"]), help="Which door.  [env: FUNCTION_TARGET]"
)
@click.option("--port", type=click.IntRange(0, 65_535), help="0 picks a free one.  [env: PORT]")
@click.option("--host", help="Address to listen on.  [env: HOST]")
def serve(target: str | None, port: int | None, host: str | None) -> None:
    """Serve one door. All other settings come from the environment: see docs/settings.md."""
    from handlers.cli.main import fail
    from handlers.serving.server import serve as run
    from handlers.settings.settings import load_settings
    from handlers.telemetry.logs import configure_logs, get_logger

    given = {"FUNCTION_TARGET": target, "PORT": port, "HOST": host}
    flags = {name: str(value) for name, value in given.items() if value is not None}
    try:
        variables = {**os.environ, **flags}  # noqa: TID251  # the process's entry
        settings = load_settings(variables)
        env = settings.env
        configure_logs(settings.log_options)
        log = get_logger("serve")
        target = env.function_target
        run(variables, settings, target, lambda at: log.info("ready", target=target, port=at))
    except InvalidSetting as error:
        fail(error)
