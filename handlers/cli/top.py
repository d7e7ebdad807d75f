"""`async-processor top`: what the status page shows, live in a terminal."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

import click

from handlers.cli.exit_codes import ExitCode, exits

if TYPE_CHECKING:
    from rich.console import Console

    from handlers.settings.settings import Settings
    from handlers.status.overview import Overview

_UNCUT: Final = 10_000
"""Columns where there is no terminal: who reads a pipe looks for whole names. Lines are as long as they must be."""


@click.command(
    epilog="""\b
Examples:
  async-processor top
  REDIS_URL=rediss://redis:6379 async-processor top --once

Keys: q quits, any other looks again at once.
Exit codes: 0 done; 2 a wrong setting; 4 Redis does not answer (--once); 130 Ctrl-C; 143 SIGTERM.""",
)
@click.option(
    "--once", "is_once", is_flag=True, help="One frame, then end; so too where the output is no terminal."
)
@click.option("--interval", "interval_seconds", type=click.FloatRange(0.2, 3_600), default=2.0, show_default=True,
              help="Seconds between two looks.")  # fmt: skip
@exits
def top(is_once: bool, interval_seconds: float) -> ExitCode:
    """Watch queues, what is in flight, rates, gates and failures. Settings come from the environment."""
    from rich.console import Console

    from handlers.settings.settings import load_settings

    settings = load_settings(os.environ)  # noqa: TID251  # the process's entry
    # Asked of the output itself: FORCE_COLOR makes a terminal of any pipe for the library.
    is_terminal = sys.stdout.isatty()
    console = Console(width=None if is_terminal else _UNCUT)
    if is_once or not is_terminal or console.is_dumb_terminal:
        return _once(settings, console)
    return _live(settings, console, interval_seconds)


def _look(settings: Settings) -> Overview:
    from handlers.wiring.status_page import RedisSource

    return RedisSource(settings).overview()


def _once(settings: Settings, console: Console) -> ExitCode:
    from handlers.cli.top_view import frame
    from handlers.status.page import Unreachable

    try:
        console.print(frame(_look(settings), console.height if sys.stdout.isatty() else None))
    except Unreachable as error:
        click.echo(f"error: Redis does not answer. {error}", err=True)
        return ExitCode.UNREACHABLE
    return ExitCode.DONE


def _live(settings: Settings, console: Console, interval_seconds: float) -> ExitCode:
    from rich.live import Live
    from rich.text import Text

    from handlers.cli.live_terminal import LiveTerminal
    from handlers.cli.top_view import frame
    from handlers.status.page import Unreachable

    with LiveTerminal() as terminal, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            try:
                live.update(frame(_look(settings), console.height, hint="q quits"), refresh=True)
            except Unreachable as error:
                text = f"Redis does not answer; trying again. {error}"
                live.update(Text(text, style="bold red"), refresh=True)
            if terminal.wait(interval_seconds) in ("q", "Q"):
                return ExitCode.DONE
