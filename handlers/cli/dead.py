"""`async-processor dead`: list, show, requeue and drop dead letters."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import click

from handlers.cli.flags import QueueFlags, redis_flags
from handlers.cli.shell import ExitCode, IdType, confirm, exits, for_output, run_async
from handlers.number_text import counted

if TYPE_CHECKING:
    from handlers.redis_store.admin.dead_letters import DeadLetter, DeadLetters

Work = Callable[["DeadLetters"], Awaitable[ExitCode]]


@click.group(
    epilog="""\b
Examples:
  async-processor dead list
  async-processor dead list --json | jq -r 'select(.reason == "UNDELIVERABLE") | .dead_id'
  async-processor dead show 3f1c
  async-processor dead requeue 3f1c 88a0
  async-processor dead drop --all --yes

You may shorten the id of a dead letter, as long as the prefix is unique. In the list, REQUEST is the id of the
request, and DEATHS is the number of pollers that crashed or lost their lease while they held it (see MAX_DEATHS).

Exit codes: 0 done; 1 no such dead letter, or not confirmed; 2 invalid flags; 4 Redis does not answer."""
)
def dead() -> None:
    """List dead letters, queue them again or drop them.

    A dead letter is a request whose pollers crashed or lost their lease too often, or a queue entry without a readable
    id. It has an error result only if its id could be read.
    """


@dead.command("list")
@click.option("--json", "is_json", is_flag=True, help="Print a JSON object for each, with the request as queued.")
@redis_flags
@exits
def list_letters(queue: QueueFlags, is_json: bool) -> ExitCode:
    """List all dead letters of a queue, the latest last."""

    async def work(letters: DeadLetters) -> ExitCode:
        found = sorted([letter async for letter in letters.all()], key=lambda letter: letter.at)
        if is_json:
            for letter in found:
                click.echo(for_output(_as_json(letter).decode(), sys.stdout))
        else:
            _print_list(found)
        return ExitCode.DONE

    return _run(queue, work)


@dead.command("show")
@click.argument("dead_id", type=IdType())
@redis_flags
@exits
def show(dead_id: str, queue: QueueFlags) -> ExitCode:
    """Print one dead letter as JSON, with the request as queued."""

    async def work(letters: DeadLetters) -> ExitCode:
        import msgspec

        letter = await _named(letters, dead_id)
        if letter is None:
            return ExitCode.FAILED_REQUESTS
        click.echo(for_output(msgspec.json.format(_as_json(letter), indent=2).decode(), sys.stdout))
        return ExitCode.DONE

    return _run(queue, work)


def _as_json(letter: DeadLetter) -> bytes:
    import msgspec

    member = letter.member.decode("utf-8", "backslashreplace")
    fields = msgspec.to_builtins(letter, builtin_types=(bytes,))
    return msgspec.json.encode({**fields, "request_id": letter.request_id, "member": member})


@dead.command("requeue")
@click.argument("dead_ids", nargs=-1, type=IdType())
@click.option("--all", "is_all", is_flag=True, help="Requeue all dead letters.")
@redis_flags
@exits
def requeue(dead_ids: tuple[str, ...], is_all: bool, queue: QueueFlags) -> ExitCode:
    """Queue dead letters again, unchanged.

    The error result of a request stays in its list until it is read; the second run adds a second result.
    """

    async def work(letters: DeadLetters) -> ExitCode:
        return await _each(letters, dead_ids, is_all, letters.requeue, "queued again")

    return _run(queue, work)


@dead.command("drop")
@click.argument("dead_ids", nargs=-1, type=IdType())
@click.option("--all", "is_all", is_flag=True, help="Drop all dead letters, after a confirmation.")
@click.option("--yes", "is_confirmed", is_flag=True, help="With --all: do not ask for confirmation.")
@redis_flags
@exits
def drop(dead_ids: tuple[str, ...], is_all: bool, is_confirmed: bool, queue: QueueFlags) -> ExitCode:
    """Delete dead letters."""

    async def work(letters: DeadLetters) -> ExitCode:
        if is_all and not dead_ids and not is_confirmed and not _confirmed(await letters.count(), queue.queue):
            return ExitCode.FAILED_REQUESTS
        return await _each(letters, dead_ids, is_all, lambda letter: letters.drop(letter.dead_id), "dropped")

    return _run(queue, work)


def _confirmed(count: int, queue: str) -> bool:
    """Ask for confirmation. Without a terminal, only `--yes` confirms."""
    if not count:
        click.echo("no dead letters", err=True)
        return False
    if sys.stdin.isatty():
        return confirm(f"Drop {counted(count, 'dead letter')} of {queue}?")
    click.echo(f"nothing dropped: pass --yes to drop {counted(count, 'dead letter')} of {queue}", err=True)
    return False


async def _each(
    letters: DeadLetters,
    dead_ids: tuple[str, ...],
    is_all: bool,
    act: Callable[[DeadLetter], Awaitable[bool]],
    word: str,
) -> ExitCode:
    if bool(dead_ids) == is_all:
        raise click.UsageError("give either ids of dead letters or --all")
    code, count = ExitCode.DONE, 0
    chosen = [letter.dead_id async for letter in letters.all()] if is_all else list(dead_ids)
    for dead_id in chosen:
        letter = await letters.get(dead_id) if is_all else await _named(letters, dead_id)
        if letter is not None and await act(letter):
            count += 1
        elif not is_all:
            code = ExitCode.FAILED_REQUESTS
    if count or code is ExitCode.DONE:
        click.echo(f"{count} {word}")
    return code


async def _named(letters: DeadLetters, prefix: str) -> DeadLetter | None:
    """The only dead letter whose id begins with `prefix`.

    Prints an error unless exactly one is found.
    """
    found = await letters.beginning_with(prefix)
    if len(found) == 1:
        return found[0]
    if found:
        ids = "\n".join(f"  {letter.dead_id}" for letter in found)
        click.echo(f"{prefix} is the beginning of {counted(len(found), 'id')}; give more of the id:\n{ids}", err=True)
    else:
        command = f"async-processor dead list --queue {shlex.quote(letters.queue)}"
        click.echo(f"no dead letter {prefix} in this queue: `{command}` shows them", err=True)
    return None


def _run(queue: QueueFlags, work: Work) -> ExitCode:
    from handlers.redis_store.admin.dead_letters import DeadLetters
    from handlers.redis_store.connection import STORE_FAILURES, connect
    from handlers.redis_store.faults import explained, has_fix
    from handlers.redis_store.submit.submissions import client_options

    options = client_options(queue.redis_url, queue.access)

    async def connected() -> ExitCode:
        redis = connect(options)
        try:
            return await work(DeadLetters(redis, queue.queue, cluster=options.is_cluster))
        except BrokenPipeError:  # our own output's, see `exits`
            raise
        except STORE_FAILURES as error:
            click.echo(f"error: Redis does not answer: {explained(error)}", err=True)
            if not has_fix(error):
                click.echo("Set its address with REDIS_URL or --redis-url.", err=True)
            return ExitCode.UNREACHABLE
        finally:
            await redis.aclose()

    return run_async(connected())


_NARROW: Final = 120
"""In a narrower terminal, the details of a dead letter get a line of their own."""


def _print_list(found: list[DeadLetter]) -> None:
    """Print one line per dead letter, two in a narrow terminal."""
    if not found:
        click.echo("no dead letters")
        return
    ids = [_plain(letter.request_id) or "(no id)" for letter in found]
    id_width = max(map(len, ["REQUEST", *ids]))
    reasons = max(len(letter.reason) for letter in found)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _NARROW
    gap = "\n    " if width < _NARROW else "  "
    click.echo(f"{'ID':40}  {'WHEN':15}  {'REASON':{reasons}}{gap}DEATHS  BYTES    {'REQUEST':{id_width}}  MESSAGE")
    for letter, request_id in zip(found, ids, strict=True):
        when = datetime.fromtimestamp(letter.at, UTC).strftime("%m-%d %H:%M:%SZ")
        details = f"{letter.delivery_count:<6}  {len(letter.member):<7}  {request_id:{id_width}}"
        message = _plain(letter.message)
        line = f"{letter.dead_id:40}  {when:15}  {_plain(letter.reason):{reasons}}{gap}{details}  {message}"
        click.echo(for_output(line.rstrip(), sys.stdout))


def _plain(text: str) -> str:
    """The text without control characters."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
