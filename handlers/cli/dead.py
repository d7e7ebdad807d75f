"""`async-processor dead`: what could not be answered, kept with its reason."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from handlers.cli.connection import QueueFlags, redis_flags
from handlers.cli.exit_codes import ExitCode, exits
from handlers.cli.stranger_text import for_output

if TYPE_CHECKING:
    from rich.text import Text

    from handlers.redis_store.queue.dead_letters import DeadLetter, DeadLetters

Work = Callable[["DeadLetters"], Awaitable[ExitCode]]


@click.group(
    epilog="""\b
Examples:
  async-processor dead list
  async-processor dead show 3f1c…
  async-processor dead requeue 3f1c…
  async-processor dead drop --all

Exit codes: 0 done; 1 no such dead letter; 2 wrong flags; 4 Redis does not answer.""",
)
def dead() -> None:
    """Look at dead letters, queue them again or drop them.

    A dead letter is a request that too many owners died on (its error result was sent), or a member whose id
    could not be read (nobody could be told).
    """


@dead.command("list")
@redis_flags
@exits
def list_letters(queue: QueueFlags) -> ExitCode:
    """All dead letters of a queue, the latest last."""

    async def work(letters: DeadLetters) -> ExitCode:
        found = sorted([letter async for letter in letters.all()], key=lambda letter: letter.at)
        _print_table(found)
        return ExitCode.DONE

    return _run(queue, work)


@dead.command("show")
@click.argument("dead_id")
@redis_flags
@exits
def show(dead_id: str, queue: QueueFlags) -> ExitCode:
    """One dead letter as JSON, with the member as it was queued."""

    async def work(letters: DeadLetters) -> ExitCode:
        import msgspec

        letter = await letters.get(dead_id)
        if letter is None:
            return _missing(dead_id)
        fields = {
            **msgspec.structs.asdict(letter),
            "member": letter.member.decode("utf-8", "backslashreplace"),
        }
        shown = msgspec.json.format(msgspec.json.encode(fields), indent=2).decode()
        click.echo(for_output(shown, sys.stdout))
        return ExitCode.DONE

    return _run(queue, work)


@dead.command("requeue")
@click.argument("dead_ids", nargs=-1)
@click.option("--all", "is_all", is_flag=True, help="Every one.")
@redis_flags
@exits
def requeue(dead_ids: tuple[str, ...], is_all: bool, queue: QueueFlags) -> ExitCode:
    """Queue dead letters again as they were: their result will be a second one."""

    async def work(letters: DeadLetters) -> ExitCode:
        return await _each(letters, dead_ids, is_all, letters.requeue, "queued again")

    return _run(queue, work)


@dead.command("drop")
@click.argument("dead_ids", nargs=-1)
@click.option("--all", "is_all", is_flag=True, help="Every one.")
@redis_flags
@exits
def drop(dead_ids: tuple[str, ...], is_all: bool, queue: QueueFlags) -> ExitCode:
    """Forget dead letters."""

    async def work(letters: DeadLetters) -> ExitCode:
        return await _each(letters, dead_ids, is_all, lambda letter: letters.drop(letter.dead_id), "dropped")

    return _run(queue, work)


async def _each(
    letters: DeadLetters,
    dead_ids: tuple[str, ...],
    is_all: bool,
    act: Callable[[DeadLetter], Awaitable[bool]],
    word: str,
) -> ExitCode:
    if bool(dead_ids) == is_all:
        raise click.UsageError("name dead letters, or --all")
    code, count = ExitCode.DONE, 0
    chosen = [letter.dead_id async for letter in letters.all()] if is_all else list(dead_ids)
    for dead_id in chosen:
        letter = await letters.get(dead_id)
        if letter is None or not await act(letter):
            code = code if is_all else _missing(dead_id)
            continue
        count += 1
    click.echo(f"{count} {word}")
    return code


def _missing(dead_id: str) -> ExitCode:
    click.echo(f"no dead letter {dead_id}: `async-processor dead list` shows them", err=True)
    return ExitCode.FAILED_REQUESTS


def _run(queue: QueueFlags, work: Work) -> ExitCode:
    from handlers.redis_store.connection import STORE_FAILURES, connect
    from handlers.redis_store.faults import explained
    from handlers.redis_store.queue.dead_letters import DeadLetters
    from handlers.redis_store.submit.client_access import client_options

    options = client_options(queue.redis_url, queue.access)

    async def connected() -> ExitCode:
        redis = connect(options)
        try:
            return await work(DeadLetters(redis, queue.queue, cluster=options.is_cluster))
        except STORE_FAILURES as error:
            click.echo(f"error: Redis does not answer: {explained(error)}", err=True)
            return ExitCode.UNREACHABLE
        finally:
            await redis.aclose()

    return asyncio.run(connected())


def _print_table(found: list[DeadLetter]) -> None:
    from rich.console import Console
    from rich.table import Table

    if not found:
        click.echo("no dead letters")
        return
    table = Table(box=None)
    for column in ("id", "when", "reason", "deaths", "bytes", "message"):
        table.add_column(column, no_wrap=True, overflow="fold" if column == "id" else "ellipsis")
    for letter in found:
        when = datetime.fromtimestamp(letter.at, UTC).strftime("%m-%d %H:%M:%SZ")
        table.add_row(
            *map(_plain, (letter.dead_id, when, letter.reason)),
            str(letter.deaths),
            str(len(letter.member)),
            _plain(letter.message),
        )
    Console().print(table)


def _plain(text: str) -> Text:
    """A cell that shows what is in the record: no markup, and nothing that a terminal would obey."""
    from rich.text import Text

    shown = (each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
    return Text("".join(shown))
