"""`make bench-slack`: the idle capacity that each gate uses, and its cost to real-time traffic."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from tests.bench.slack.figures import Figures, figures_of
from tests.bench.slack.profile import SWINGING
from tests.bench.slack.report import COLUMNS, draw, markdown, rows_of
from tests.bench.slack.run import Record, run
from tests.bench.slack.setups import BASELINE, PICTURED, SETUPS, Setup
from tests.servers.presence import INSTALL

Found = list[tuple[Record, Figures]]


@click.command()
@click.argument("names", nargs=-1)
@click.option("--seed", default=7, show_default=True, help="Of the real-time arrivals.")
@click.option("--together", default=4, show_default=True, help="Runs side by side; each costs little CPU.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/slack"), show_default=True)
def main(names: tuple[str, ...], seed: int, together: int, out: Path) -> None:
    """Run every setup, or those whose names contain one of NAMES, and the run without a queue."""
    console = Console(width=200)
    chosen = [one for one in SETUPS if one == BASELINE or not names or any(part in one.name for part in names)]

    if any(one.has_prometheus for one in chosen) and shutil.which("prometheus") is None:
        raise click.ClickException(f"missing: prometheus. Install with: {INSTALL}")

    def measured(setup: Setup) -> tuple[Record, Figures] | None:
        try:
            record = run(setup, SWINGING, seed)
        except Exception:  # noqa: BLE001  # the other runs are still worth their time
            console.print_exception(max_frames=4)
            console.print(f"[red]{setup.name} failed[/]")
            return None
        figures = figures_of(record)
        console.print(f"[dim]{setup.name}: {figures}[/]")
        return record, figures

    seconds = SWINGING.seconds * -(-len(chosen) // together)
    console.print(f"{len(chosen)} runs of {SWINGING.seconds:.0f} s, {together} at a time: {seconds:.0f} s")
    with ThreadPoolExecutor(together) as pool:
        measured_or_none = list(pool.map(measured, chosen))
    found = [one for one in measured_or_none if one is not None]
    if not found:
        raise SystemExit(1)
    console.print(table(found))
    out.mkdir(parents=True, exist_ok=True)
    (out / "slack.md").write_text(markdown(found), encoding="utf-8")
    draw([record for record, _ in found], out / "slack.png")
    draw([record for record, _ in found if record.setup in PICTURED], out / "slack-few.png")
    console.print(f"{out}/slack.md, {out}/slack.png; the few that the README shows: {out}/slack-few.png")
    if len(found) < len(chosen):
        raise SystemExit(1)


def table(found: Found) -> Table:
    """The table for a terminal."""
    shown = Table(title="The same real-time load for every run")
    for number, column in enumerate(COLUMNS):
        shown.add_column(column, justify="right" if number else "left")
    for row in rows_of(found):
        shown.add_row(*row)
    return shown


if __name__ == "__main__":
    main()
