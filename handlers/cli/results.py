"""`async-processor results`: read results."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from handlers.cli.flags import DurationType, QueueFlags, queue_flags
from handlers.cli.shell import ExitCode, exits, for_output
from handlers.contract.counted import counted
from handlers.contract.result import Result, encode_result

if TYPE_CHECKING:
    from handlers.client.results import ResultDelivery, ResultStream

PRINTED_PAYLOAD_CHARACTERS = 120
"""Characters of a payload that a terminal shows."""


@click.command(
    "results",
    epilog="""\b
Examples:
  async-processor results                    follow, until Ctrl-C
  async-processor results -n 10 > ten.jsonl
  async-processor results --for 0s           waiting results only
  async-processor results --peek -n 5        the five oldest, left where they are (Redis)
  async-processor results --from pubsub --project p --subscription results-sub

Reading consumes: a result that was printed is removed from the list or subscription, and no other reader gets it. It is
removed after it was written, so a crash loses none. --peek removes nothing.

Exit codes: 0 done, whatever the results say; 2 wrong flags; 3 with --take, none came in the time given;
4 the broker does not answer; 130 interrupted.""",
)
@click.option("-n", "--take", type=click.IntRange(min=1), help="Stop after this many results.")
@click.option(
    "--peek", "is_peek", is_flag=True, help="Read results without removing them, oldest first (Redis)."
)
@click.option("--for", "idle", type=DurationType(), help="Stop after this long without a result.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["auto", "json", "table"]),
    default="auto",
    help="JSON lines or a table.  [default: a table to a terminal, else JSON lines]",
)
@queue_flags
@exits
def results(
    *, take: int | None, is_peek: bool, idle: timedelta | None, form: str, queue: QueueFlags
) -> ExitCode:
    """Read results and remove them, until Ctrl-C or a limit. --peek leaves them."""
    is_table = form == "table" or (form == "auto" and sys.stdout.isatty())
    write = _table_writer() if is_table else _write_json
    if is_peek:
        return asyncio.run(_peek(queue, take, write))
    return asyncio.run(_results(queue, take, idle, write))


async def _peek(queue: QueueFlags, take: int | None, write: Callable[[Result], None]) -> ExitCode:
    count = 0
    async with queue.client() as client:
        async for result in client.peek(limit=take):
            write(result)
            count += 1
    return ExitCode.DONE if count or take is None else ExitCode.NOT_YET


async def _results(
    queue: QueueFlags, take: int | None, idle: timedelta | None, write: Callable[[Result], None]
) -> ExitCode:
    count = 0
    async with queue.client() as client, client.results(limit=take, idle=idle) as stream:
        async for delivery in stream:
            deliveries = [delivery, *stream.take_ready()]
            for each in deliveries:
                write(each.result)
            sys.stdout.flush()
            await _ack(stream, deliveries)
            count += len(deliveries)
        report_undecodable(stream)
    return ExitCode.DONE if count or take is None else ExitCode.NOT_YET


def report_undecodable(stream: ResultStream) -> None:
    """Print how many results could not be decoded, and where they are stored."""
    if stream.undecodable:
        print(
            f"warning: {counted(stream.undecodable, 'result')} could not be decoded. Undecodable results are "
            "not removed, and return when their lease ends; a newer version may read them.",
            file=sys.stderr,
        )


async def _ack(stream: ResultStream, deliveries: list[ResultDelivery]) -> None:
    from handlers.client.errors import LeaseLost

    try:
        await stream.ack(deliveries)
    except LeaseLost as error:
        print(f"warning: {error}", file=sys.stderr)


def _write_json(result: Result) -> None:
    sys.stdout.write(for_output(encode_result(result).decode(), sys.stdout) + "\n")


def _table_writer() -> Callable[[Result], None]:
    """Print a line for each result, in columns; a `rich` table could only be drawn at the end."""
    from rich.console import Console
    from rich.table import Table

    console = Console()

    def write(result: Result) -> None:
        is_answered = result.status_code > 0
        is_good = is_answered and 200 <= result.status_code < 300
        said = (result.stored_elsewhere or result.payload) if is_answered else result.error_message
        table = Table.grid(padding=(0, 2), expand=True)
        table.add_column(width=24, no_wrap=True, overflow="ellipsis")
        table.add_column(width=18, no_wrap=True, style="green" if is_good else "red")
        table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        text = " ".join(said[:PRINTED_PAYLOAD_CHARACTERS].split())
        table.add_row(_plain(result.id), _plain(str(result.status_code or result.error_code)), _plain(text))
        console.print(table)

    return write


def _plain(text: str) -> str:
    """Untrusted text without control characters and `rich` markup."""
    from rich.markup import escape

    return escape("".join(character if character.isprintable() else "�" for character in text))
