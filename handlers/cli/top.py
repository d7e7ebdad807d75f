"""`async-processor top`: the data of the status page, live in a terminal."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, Self

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from handlers.cli.shell import ExitCode, exits, printable, stop_at_signals
from handlers.number_text import counted, duration_text
from handlers.status.overview import Minute, Overview, folded
from handlers.status.report import Failure

if TYPE_CHECKING:
    from handlers.wiring.status_page import RedisSource

_UNCUT: Final = 10_000
"""Width if the output is not a terminal and COLUMNS is not set; wide enough that names are not cut."""


@click.command(
    epilog="""\b
Examples:
  async-processor top
  REDIS_URL=rediss://redis:6379 async-processor top --once

Keys: q quits; any other key refreshes.
Exit codes: 0 done; 2 an invalid setting; 4 Redis does not answer (--once); 130 Ctrl-C; 143 SIGTERM."""
)
@click.option(
    "--once", "is_once", is_flag=True, help="Print one frame and exit; the default if the output is not a terminal."
)
@click.option("--interval", "interval_seconds", type=click.FloatRange(0.2, 3_600), default=2.0, show_default=True,
              help="Seconds between refreshes.")  # fmt: skip
@exits
def top(is_once: bool, interval_seconds: float) -> ExitCode:
    """Show queues, rates, gates and failures live.

    Settings come from the environment and CONFIG_FILE: see docs/settings.md.
    """
    from handlers.settings.settings import load_settings

    settings = load_settings(os.environ)  # noqa: TID251  # the process's entry
    # Not `rich`'s test: with FORCE_COLOR it treats any pipe as a terminal.
    is_terminal = sys.stdout.isatty()
    has_width = os.environ.get("COLUMNS", "").lstrip("0").isdigit()  # noqa: TID251  # a pipe's width, which `watch` sets
    console = Console(width=None if is_terminal or has_width else _UNCUT)
    from handlers.wiring.status_page import RedisSource

    stop_at_signals()
    with RedisSource(settings) as source:
        if is_once or not is_terminal or console.is_dumb_terminal:
            return _once(source, console)
        return _live(source, console, interval_seconds)


def _once(source: RedisSource, console: Console) -> ExitCode:
    from handlers.status.page import Unreachable

    try:
        console.print(frame(source.overview(), console.height if sys.stdout.isatty() else None))
    except Unreachable as error:
        click.echo(f"error: Redis does not answer. {error}", err=True)
        return ExitCode.UNREACHABLE
    return ExitCode.DONE


def _live(source: RedisSource, console: Console, interval_seconds: float) -> ExitCode:
    from handlers.status.page import Unreachable

    with LiveTerminal() as terminal, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            try:
                live.update(frame(source.overview(), console.height, hint="q quits"), refresh=True)
            except Unreachable as error:
                text = f"Redis does not answer; trying again. {error}"
                live.update(Text(text, style="bold red"), refresh=True)
            if terminal.wait(interval_seconds) in ("q", "Q"):
                return ExitCode.DONE


_BARS: Final = " ▁▂▃▄▅▆▇█"
_MOST_FAILURES: Final = 15
_OTHER_LINES: Final = 12
_NOTHING: Final = "-"


def frame(now: Overview, height: int | None, hint: str = "") -> RenderableType:
    """The whole screen, with as many failures as fit into `height` lines.

    At most 15 failures are shown. `hint` is shown in the first line.
    """
    queues, pools = _queues(now), _pools(now)
    used = _OTHER_LINES + queues.row_count + pools.row_count
    most = _MOST_FAILURES if height is None else max(0, min(_MOST_FAILURES, height - used))
    return Group(_head(now, hint), Text(), queues, Text(), pools, Text(), _failures(now, most))


def bar_line(numbers: Sequence[int]) -> str:
    """A line of bars, scaled to the largest value."""
    most = max(numbers, default=0)
    return "".join(_BARS[0 if not number else max(1, round(8 * number / most))] for number in numbers)


def _head(now: Overview, hint: str) -> Text:
    dead, pollers = now.total("dead"), len(now.pollers)
    text = Text()
    text.append("async-processor", style="bold")
    text.append(f"  {_clock(now.at)} UTC, {counted(pollers, 'poller')}", style="dim")
    text.append(f"  {hint}\n" if hint else "\n", style="dim")
    for word, number, style in (
        ("queued", now.total("pending"), "bold"),
        ("in flight", sum(line.in_flight for line in now.queues), "bold cyan"),
        ("at a gate", sum(line.waiting for line in now.queues), "bold"),
        ("waiting for a retry", now.retrying, "bold yellow" if now.retrying else "bold"),
        (counted(dead, "dead letter").split(maxsplit=1)[1], dead, "bold red" if dead else "bold"),
    ):
        text.append(f"{number:,}", style=style)
        text.append(f" {word}  ")
    last = _last_whole(now.minutes)
    count, word = counted(last.answered + last.failed, "result").split()
    text.append(f"\n{count}", style="bold green")
    shown = "  ".join(f"{name} {_seconds(getattr(last, name))}" for name in ("p50", "p95", "p99"))
    text.append(f" {word} in the last whole minute  {shown}\n")
    text.append(bar_line([one.answered + one.failed for one in now.minutes]), style="green")
    text.append("  last hour", style="dim")
    return text


def _last_whole(minutes: Sequence[Minute]) -> Minute:
    """The last complete minute."""
    return minutes[-2] if len(minutes) > 1 else Minute(0, 0, 0, None, None)


def _table(*columns: str, numbers: Sequence[str] = ()) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    for name in columns:
        justify = "right" if name in numbers else "left"
        table.add_column(name, justify=justify, overflow="ellipsis", no_wrap=True)  # type: ignore[arg-type]  # a literal
    return table


def _queues(now: Overview) -> Table:
    numbers = ("QUEUED", "IN FLIGHT", "AT GATE", "DEAD")
    table = _table("QUEUE", "POOL", "LANE", *numbers, "DUE IN", "CIRCUIT", numbers=numbers)
    for column in table.columns[:3]:
        column.no_wrap, column.overflow = False, "fold"  # a narrow terminal wraps names; headings stay whole
    for line in now.queues:
        depths = line.depths
        counts = (depths.pending, line.in_flight, line.waiting, depths.dead)
        table.add_row(
            _plain(line.name),
            _plain(line.pool or _NOTHING),
            line.lane or _NOTHING,
            *(f"{count:,}" for count in counts),
            _seconds(now.seconds_to_deadline(depths)),
            _plain(line.circuit or _NOTHING),
        )
    return table


def _pools(now: Overview) -> Table:
    table = _table("POOL OR GATE", "STATE", "WHY")
    for pool in now.pools:
        why = "" if pool.budget >= 1 else f"its gates allow {pool.budget:.0%}"
        table.add_row(_plain(f"pool {pool.name}"), f"{pool.in_flight}/{counted(pool.slots, 'slot')}", why)
    for line in now.gates:
        gate = line.gate
        state = Text("closed", "bold red") if gate.closed_because else Text("open", "green")
        why = ", ".join(part for part in (gate.closed_because or gate.reading, gate.on_missing) if part)
        table.add_row(_plain(f"{gate.gate_type} of {line.owner}"), state, _plain(why))
    if not now.pollers:
        table.add_row("none", "", "no poller was seen in the last 20 seconds")
    return table


def _failures(now: Overview, most: int) -> Table | Text:
    if not now.failures:
        return Text("No failures in the last day.", style="dim")
    has_queues = len(now.queues) > 1
    queue_heading = ["QUEUE"] if has_queues else []
    table = _table("WHEN", "OUTCOME", "ATTEMPT", "REASON", *queue_heading, "REQUEST", numbers=("ATTEMPT",))
    for one, count in folded(now.failures, _row_of)[:most]:
        outcome = Text("failed", "red") if one.is_final else Text("retried", "yellow")
        reason = f"{one.reason} {one.status_code or ''}".strip()
        request = (one.id or "(no id)") + (f" x{count}" if count > 1 else "")
        queue = [_plain(one.queue)] if has_queues else []
        table.add_row(_clock(one.at), outcome, str(one.attempt + 1), _plain(reason), *queue, _plain(request))
    return table


def _row_of(failure: Failure) -> tuple[object, ...]:
    """The text of a failure's row without its time; equal failures share a row."""
    return failure.is_final, failure.attempt, failure.reason, failure.status_code, failure.queue, failure.id


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S")


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return _NOTHING
    if abs(seconds) < 1:
        return f"{seconds * 1000:.0f} ms"
    if abs(seconds) < 100:
        return f"{seconds:.1f} s"
    return ("-" if seconds < 0 else "") + duration_text(abs(seconds))


def _plain(text: str) -> Text:
    """Text without markup and without characters that a terminal would interpret."""
    return Text(printable(text, ""))


_CONTROL_CHARACTERS: Final = 6
"""Index of the control characters in `termios` attributes."""


class LiveTerminal:
    """Context manager that prepares the terminal and restores it at the end.

    Use it in the main thread only, because it handles SIGWINCH. If standard input is not a terminal, keys are not read.
    """

    def __init__(self) -> None:
        self._keys = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
        self._restore: Callable[[], None] = lambda: None
        self._on_resize_before: Any = None
        self._resized, self._tell = os.pipe()
        os.set_blocking(self._resized, False)
        os.set_blocking(self._tell, False)

    def __enter__(self) -> Self:
        self._on_resize_before = signal.signal(signal.SIGWINCH, self._on_resize)
        if self._keys is not None:
            self._restore = _cbreak(self._keys)
        return self

    def __exit__(self, *_error: object) -> None:
        self._restore()
        signal.signal(signal.SIGWINCH, self._on_resize_before)
        os.close(self._tell)
        os.close(self._resized)

    def wait(self, seconds: float) -> str:
        """Wait for a key; empty after the timeout or a resize."""
        sources = [self._resized] if self._keys is None else [self._resized, self._keys]
        ready, _, _ = select.select(sources, [], [], seconds)
        if self._resized in ready:
            os.read(self._resized, 4_096)
        if self._keys is None or self._keys not in ready:
            return ""
        pressed = os.read(self._keys, 64)
        if not pressed:
            self._keys = None  # the terminal is closed, and `select` would always return at once
        return pressed.decode("utf-8", "replace")

    def _on_resize(self, _number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(BlockingIOError):  # the pipe is full, so a wake-up is already pending
            os.write(self._tell, b"\0")


def _cbreak(terminal: int) -> Callable[[], None]:
    """Deliver each key at once, without echo. Return a function that restores the terminal.

    Ctrl-Z is disabled, because the shell would inherit our screen.
    """
    before = termios.tcgetattr(terminal)
    # DRAIN, not FLUSH, so that a key pressed before the first frame counts.
    tty.setcbreak(terminal, termios.TCSADRAIN)
    now = termios.tcgetattr(terminal)
    now[_CONTROL_CHARACTERS][termios.VSUSP] = bytes([os.fpathconf(terminal, "PC_VDISABLE")])
    termios.tcsetattr(terminal, termios.TCSADRAIN, now)
    return lambda: termios.tcsetattr(terminal, termios.TCSADRAIN, before)
