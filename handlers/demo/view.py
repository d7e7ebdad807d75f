"""What the demo shows: a line while it runs, two tables at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from handlers.demo.tally import Stages, Tally, percentile
from handlers.redis_store.queue.depths import QueueDepths


def progress_view(depths: QueueDepths, tally: Tally) -> RenderableType:
    """Where the Redis requests are now."""
    errors = sum(tally.final_errors.values())
    line = Text.assemble(
        ("queued ", "dim"),
        f"{depths.pending:<5}",
        ("claimed ", "dim"),
        f"{depths.claimed:<5}",
        ("waiting for a retry ", "dim"),
        (f"{depths.retrying:<5}", "yellow"),
        ("answered ", "dim"),
        (f"{tally.answered:<5}", "green"),
        ("final errors ", "dim"),
        (f"{errors:<4}", "red"),
    )
    return Group(line, ProgressBar(total=max(1, len(tally.sent_at)), completed=len(tally.results), width=80))


def closing_table(ways: Mapping[str, tuple[Tally, Stages]]) -> Table:
    """What was sent and what became of it, with latencies by stage."""
    table = Table(title="What became of the requests", title_justify="left")
    table.add_column("")
    for name in ways:
        table.add_column(name, justify="right")
    rows = [
        ("sent", [str(len(tally.sent_at)) for tally, _ in ways.values()]),
        ("answered (2xx)", [str(tally.answered) for tally, _ in ways.values()]),
        ("  of these, retried before", [str(_retried(*way)) for way in ways.values()]),
        ("final errors", [str(sum(tally.final_errors.values())) for tally, _ in ways.values()]),
        ("lost", [_count(len(tally.sent_at) - len(tally.results)) for tally, _ in ways.values()]),
        ("results twice", [_count(tally.doubles) for tally, _ in ways.values()]),
    ]
    for name, cells in rows:
        table.add_row(name, *cells)
    table.add_section()
    for name, values in (
        ("queue → gateway, p50 / p99", [stage.queue for _, stage in ways.values()]),
        ("in the gateway, p50 / p99", [stage.gateway for _, stage in ways.values()]),
        ("gateway → result, p50 / p99", [stage.way_back for _, stage in ways.values()]),
        ("in all, retries included, p50 / p99", [stage.total for _, stage in ways.values()]),
    ):
        table.add_row(name, *(_percentiles(cell) for cell in values))
    return table


def failures_table(tallies: Mapping[str, Tally]) -> Table:
    """The final errors by kind."""
    table = Table(title="Final errors, each a result that says why", title_justify="left")
    table.add_column("")
    for name in tallies:
        table.add_column(name, justify="right")
    kinds = sorted({kind for tally in tallies.values() for kind in tally.final_errors})
    for kind in kinds:
        table.add_row(kind, *(str(tally.final_errors.get(kind, 0)) for tally in tallies.values()))
    return table


def _retried(tally: Tally, stage: Stages) -> int:
    answered = {key for key, result in tally.results.items() if 200 <= result.status_code < 300}
    return sum(count > 1 for key, count in stage.attempts.items() if key in answered)


def _count(number: int) -> str:
    return str(number) if number == 0 else f"[bold red]{number}[/]"


def _percentiles(values: Sequence[float]) -> str:
    return f"{percentile(values, 0.5) * 1000:,.0f} / {percentile(values, 0.99) * 1000:,.0f} ms"
