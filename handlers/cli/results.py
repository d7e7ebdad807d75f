"""`async-processor results`: read results."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from handlers.cli.flags import DurationType, QueueFlags, queue_flags
from handlers.cli.shell import ExitCode, exits, for_output, printable, run_async
from handlers.contract.result import Result, encode_result
from handlers.number_text import counted

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
  async-processor results --for 0s           read the results in the list, then stop
  async-processor results --peek -n 5        show the five oldest without removing them (Redis)
  async-processor results --from pubsub --project p --subscription results-sub

A result is removed from the list or subscription only after it is printed. So a crash loses no result, but a result
may be printed twice. --peek removes nothing.

Exit codes: 0 done, even if results are errors; 2 invalid flags; 3 with --take, no result in the time given;
4 the broker does not answer; 130 interrupted; 143 stopped by SIGTERM.""",
)
@click.option("-n", "--take", type=click.IntRange(min=1), help="Stop after this many results.")
@click.option("--peek", "is_peek", is_flag=True, help="Read results without removing them, oldest first (Redis).")
@click.option("--for", "idle", type=DurationType(), help="Stop after this time without a result.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["auto", "json", "table"]),
    default="auto",
    help="JSON lines or a table.  [default: a table to a terminal, else JSON lines]",
)
@queue_flags("--from", "--to", meaning="Broker of the results.")
@exits
def results(*, take: int | None, is_peek: bool, idle: timedelta | None, form: str, queue: QueueFlags) -> ExitCode:
    """Read and remove results until Ctrl-C or a limit."""
    is_table = form == "table" or (form == "auto" and sys.stdout.isatty())
    write = _table_writer() if is_table else _write_json
    if is_peek:
        return run_async(_peek(queue, take, write))
    return run_async(_results(queue, take, idle, write))


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
    """Print the number of results that could not be decoded, if any."""
    if stream.undecodable:
        print(
            f"warning: {counted(stream.undecodable, 'result')} could not be decoded. Such a result stays in the list "
            "or subscription and is delivered again; a newer version may be able to decode it.",
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
    """A function that prints results as lines of a table with headings.

    Only the payload is truncated: an id can be copied from any terminal.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console()
    is_first = True

    def write(result: Result) -> None:
        nonlocal is_first
        if is_first:
            is_first = False
            console.print(f"{'REQUEST':24}  {'OUTCOME':18}  PAYLOAD OR ERROR", style="dim", soft_wrap=True)
        is_answered = result.status_code > 0
        is_good = is_answered and 200 <= result.status_code < 300
        shown = (result.stored_elsewhere or result.payload) if is_answered else result.error_message
        line = Text(f"{printable(result.id, ''):24}  ")
        code = printable(str(result.status_code or result.error_code), "")
        line.append(f"{code:18}  ", "green" if is_good else "red")
        text = Text(printable(" ".join(shown[:PRINTED_PAYLOAD_CHARACTERS].split()), ""))
        room = console.width - line.cell_len
        text.truncate(room, overflow="ellipsis")
        console.print(line + text if room > 0 else line, soft_wrap=True)

    return write
