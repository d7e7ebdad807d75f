"""One frame of `async-processor top`: the status page's overview as tables."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from handlers.status.overview import Minute, Overview

_BARS: Final = " ▁▂▃▄▅▆▇█"
_MOST_FAILURES: Final = 15
_OTHER_LINES: Final = 12
_NOTHING: Final = "-"


def frame(now: Overview, height: int | None, hint: str = "") -> RenderableType:
    """All of it; failures fill what is left of `height` lines, None: as many as there are, up to 15.

    `hint` stands in the first line.
    """
    queues, pools = _queues(now), _pools(now)
    used = _OTHER_LINES + queues.row_count + pools.row_count
    most = _MOST_FAILURES if height is None else max(0, min(_MOST_FAILURES, height - used))
    return Group(_head(now, hint), Text(), queues, Text(), pools, Text(), _failures(now, most))


def bar_line(numbers: Sequence[int]) -> str:
    """A line of bars, the highest full; what is not nothing shows."""
    most = max(numbers, default=0)
    return "".join(_BARS[0 if not number else max(1, round(8 * number / most))] for number in numbers)


def _head(now: Overview, hint: str) -> Text:
    dead, pollers = now.total("dead"), len(now.pollers)
    text = Text()
    text.append("async-processor", style="bold")
    text.append(f"  {_clock(now.at)} UTC, {pollers} poller{'' if pollers == 1 else 's'}", style="dim")
    text.append(f"  {hint}\n" if hint else "\n", style="dim")
    for word, number, style in (
        ("queued", now.total("pending"), "bold"),
        ("in flight", now.total("claimed"), "bold cyan"),
        ("for retry", now.retrying, "bold yellow" if now.retrying else "bold"),
        ("dead", dead, "bold red" if dead else "bold"),
    ):
        text.append(f"{number:,}", style=style)
        text.append(f" {word}   ")
    last = _last_whole(now.minutes)
    text.append(f"\n{last.answered + last.failed:,}", style="bold green")
    text.append(f" results a minute   p50 {_seconds(last.p50)}   p95 {_seconds(last.p95)}\n")
    text.append(bar_line([one.answered + one.failed for one in now.minutes]), style="green")
    return text


def _last_whole(minutes: Sequence[Minute]) -> Minute:
    """The one before the running one, which is not whole yet."""
    return minutes[-2] if len(minutes) > 1 else Minute(0, 0, 0, None, None)


def _table(*columns: str, numbers: Sequence[str] = ()) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    for name in columns:
        justify = "right" if name in numbers else "left"
        table.add_column(name, justify=justify, overflow="ellipsis", no_wrap=True)  # type: ignore[arg-type]  # a literal
    return table


def _queues(now: Overview) -> Table:
    numbers = ("QUEUED", "IN FLIGHT", "DEAD")
    table = _table("QUEUE", "POOL", "LANE", *numbers, "DUE IN", "CIRCUIT", numbers=numbers)
    for column in table.columns[:3]:
        column.no_wrap, column.overflow = False, "fold"  # a narrow terminal folds names; headings stay whole
    for line in now.queues:
        depths = line.depths
        counts = (depths.pending, depths.claimed, depths.dead)
        table.add_row(
            _plain(line.name),
            _plain(line.pool or _NOTHING),
            line.lane or _NOTHING,
            *(f"{count:,}" for count in counts),
            _seconds(depths.seconds_to_deadline),
            _plain(line.circuit or _NOTHING),
        )
    return table


def _pools(now: Overview) -> Table:
    table = _table("POOL OR GATE", "STATE", "WHY")
    for pool in now.pools:
        why = "" if pool.budget >= 1 else f"its gates allow {pool.budget:.0%}"
        table.add_row(_plain(f"pool {pool.name}"), f"{pool.in_flight}/{pool.slots} slots", why)
    for line in now.gates:
        gate = line.gate
        state = Text("closed", "bold red") if gate.closed_because else Text("open", "green")
        reading = "" if gate.value is None else f"reads {gate.value:.3g}"
        why = ", ".join(part for part in (gate.closed_because, gate.on_missing, reading) if part)
        table.add_row(_plain(f"{gate.gate_type} of {line.owner}"), state, _plain(why))
    if not now.pollers:
        table.add_row("none", "", "no poller was seen in the last 20 seconds")
    return table


def _failures(now: Overview, most: int) -> Table:
    table = _table("WHEN", "OUTCOME", "ATTEMPT", "REASON", "REQUEST", numbers=("ATTEMPT",))
    for one in now.failures[:most]:
        outcome = Text("failed", "red") if one.is_final else Text("retry", "yellow")
        reason = f"{one.reason} {one.status_code or ''}".strip()
        table.add_row(_clock(one.at), outcome, str(one.attempt + 1), _plain(reason), _plain(one.id))
    return table


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S")


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return _NOTHING
    if abs(seconds) < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if abs(seconds) < 100 else f"{seconds / 60:,.0f} min"


def _plain(text: str) -> Text:
    """What was written, as text: no markup, and nothing that a terminal would obey."""
    return Text("".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text))
