"""`async-processor dead`: list, show, requeue and drop dead letters."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import click

from handlers.cli.flags import QueueFlags, print_note, redis_flags
from handlers.cli.shell import ExitCode, IdType, confirm, exits, for_output, printable, run_async
from handlers.number_text import counted

if TYPE_CHECKING:
    from handlers.redis_store.admin.dead_letters import DeadLetter, DeadLetters

Work = Callable[["DeadLetters"], Awaitable[ExitCode]]


_REASON = click.option("--reason", default="", help="Only dead letters with this reason, such as UNDELIVERABLE.")


@click.group(
    epilog="""\b
Examples:
  async-processor dead list
  async-processor dead list --reason UNDELIVERABLE --limit 20
  async-processor dead show 3f1c
  async-processor dead requeue 3f1c 88a0
  async-processor dead requeue --reason UNDELIVERABLE
  async-processor dead drop --all --yes

You may shorten the id of a dead letter, as long as the prefix is unique. In the list, REQUEST is the id of the
request, and DEATHS is the number of pollers that crashed or lost their lease while they held it (see MAX_DEATHS).

Exit codes: 0 done; 1 no such dead letter, hopeless or not confirmed; 2 invalid flags; 4 Redis does not answer."""
)
def dead() -> None:
    """List dead letters, queue them again or drop them.

    A dead letter is a request whose pollers crashed or lost their lease too often, or a queue entry without a readable
    id. It has an error result only if its id could be read.
    """


@dead.command("list")
@click.option("--json", "is_json", is_flag=True, help="Print a JSON object for each, with the request as queued.")
@_REASON
@click.option("--limit", type=click.IntRange(min=1), help="Only this many, the latest.  [default: all]")
@redis_flags
@exits
def list_letters(queue: QueueFlags, is_json: bool, reason: str, limit: int | None) -> ExitCode:
    """List all dead letters of a queue, the latest last."""

    async def work(letters: DeadLetters) -> ExitCode:
        found = sorted([letter async for letter in _chosen(letters, reason)], key=lambda letter: letter.at)
        found = found[-limit:] if limit else found
        if is_json:
            for letter in found:
                click.echo(for_output(_as_json(letter).decode(), sys.stdout))
        else:
            _print_list(found, letters.queue, reason)
        if not found:
            await print_note(queue, letters.queue)
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
@_REASON
@click.option("--force", "is_forced", is_flag=True, help="Requeue also what can only fail again.")
@redis_flags
@exits
def requeue(dead_ids: tuple[str, ...], is_all: bool, reason: str, is_forced: bool, queue: QueueFlags) -> ExitCode:
    """Queue dead letters again, unchanged.

    Skips invalid requests and those whose deadline has passed, unless --force is given. The error result of a request
    stays in its list until it is read; the second run adds a second result.
    """
    is_many = is_all or bool(reason)
    skipped = 0

    async def work(letters: DeadLetters) -> ExitCode:
        async def act(letter: DeadLetter) -> bool:
            nonlocal skipped
            because = "" if is_forced else letter.hopeless_because(time.time())
            if because:
                skipped += 1
                if not is_many:
                    text = f"{letter.dead_id} can only fail again: {because}; --force queues it anyway"
                    click.echo(printable(text), err=True)
            return not because and await letters.requeue(letter)

        code = await _each(letters, dead_ids, _chosen(letters, reason) if is_many else None, act, "queued again")
        if is_many and skipped:
            click.echo(f"{skipped} skipped, which can only fail again; --force queues them too", err=True)
        return code

    return _run(queue, work)


@dead.command("drop")
@click.argument("dead_ids", nargs=-1, type=IdType())
@click.option("--all", "is_all", is_flag=True, help="Drop all dead letters, after a confirmation.")
@_REASON
@click.option("--yes", "is_confirmed", is_flag=True, help="With --all or --reason: do not ask for confirmation.")
@redis_flags
@exits
def drop(dead_ids: tuple[str, ...], is_all: bool, reason: str, is_confirmed: bool, queue: QueueFlags) -> ExitCode:
    """Delete dead letters."""
    is_many = is_all or bool(reason)

    async def work(letters: DeadLetters) -> ExitCode:
        if is_many and not dead_ids and not is_confirmed:
            count = len([1 async for _ in _chosen(letters, reason)]) if reason else await letters.count()
            if not _confirmed(count, queue.queue, reason):
                return ExitCode.FAILED_REQUESTS
        every = _chosen(letters, reason) if is_many else None
        return await _each(letters, dead_ids, every, lambda letter: letters.drop(letter.dead_id), "dropped")

    return _run(queue, work)


async def _chosen(letters: DeadLetters, reason: str) -> AsyncIterator[DeadLetter]:
    """The dead letters with this reason, in any case; all if it is empty."""
    async for letter in letters.all():
        if not reason or letter.reason.lower() == reason.lower():
            yield letter


def _with(reason: str) -> str:
    return f" with the reason {reason}" if reason else ""


def _confirmed(count: int, queue: str, reason: str) -> bool:
    """Ask for confirmation. Without a terminal, only `--yes` confirms."""
    if not count:
        click.echo(f"no dead letters of queue {queue}{_with(reason)}", err=True)
        return False
    letters = f"{counted(count, 'dead letter')}{_with(reason)} of {queue}"
    if sys.stdin.isatty():
        return confirm(f"Drop {letters}?")
    click.echo(f"nothing dropped: pass --yes to drop {letters}", err=True)
    return False


async def _each(
    letters: DeadLetters,
    dead_ids: tuple[str, ...],
    every: AsyncIterator[DeadLetter] | None,
    act: Callable[[DeadLetter], Awaitable[bool]],
    word: str,
) -> ExitCode:
    is_all = every is not None
    if bool(dead_ids) == is_all:
        raise click.UsageError("give either ids of dead letters, or --all or --reason")
    code, count = ExitCode.DONE, 0
    chosen = list(dead_ids) if every is None else [letter.dead_id async for letter in every]
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
        click.echo(f"no dead letter {prefix} of queue {letters.queue}: `{command}` shows them", err=True)
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


def _print_list(found: list[DeadLetter], queue: str, reason: str) -> None:
    """Print one line per dead letter, two in a narrow terminal."""
    if not found:
        click.echo(f"no dead letters of queue {queue}{_with(reason)}")
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
