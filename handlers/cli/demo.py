"""`async-processor demo`: run requests through all parts once."""

from __future__ import annotations

import signal
import sys

import click

from handlers.contract.errors import AsyncProcessorError


@click.command(
    epilog="""\b
Examples:
  async-processor demo
  async-processor demo --requests 1000 --no-pubsub

Exit codes: 0 every request got exactly one final result; 1 one did not; 2 a part could not be started;
130 Ctrl-C; 143 SIGTERM.""",
)
@click.option(
    "--requests", type=click.IntRange(20, 100_000), default=200, show_default=True, help="Number of requests."
)
@click.option(
    "--pubsub/--no-pubsub", "has_pubsub", default=True, help="Pub/Sub too, if its emulator is found."
)
@click.option("--timeout", "seconds", default=90.0, show_default=True, help="Time limit in seconds.")
def demo(requests: int, has_pubsub: bool, seconds: float) -> None:
    """Requests enter a real Valkey, go through poller and handler to a gateway that fails on purpose, are
    retried, and come back as results. Where Google's Pub/Sub emulator is found, also through a topic."""
    from rich.console import Console

    import handlers.serving.server  # noqa: F401  # a missing extra fails here, and not in a child process
    from handlers.cli.main import fail
    from handlers.demo.demo import DemoOptions, run_demo

    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # ends the context managers, which stop all processes
    try:
        is_complete = run_demo(DemoOptions(requests, has_pubsub, seconds), Console())
    except AsyncProcessorError as error:
        fail(error)
    except KeyboardInterrupt:
        sys.exit(130)
    else:
        sys.exit(0 if is_complete else 1)
