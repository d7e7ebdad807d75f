"""`make bench`: measure the doors and the poller beside a bare forwarder, in one run on this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.table import Table

from tests.bench import scenarios
from tests.bench.outage import outage
from tests.bench.scenarios import Figures

SCENARIOS: dict[str, tuple[Callable[[int], Figures], int, int]] = {
    "bare forwarder": (scenarios.bare_forwarder, 20_000, 300),
    "handler alone": (scenarios.handler_alone, 20_000, 300),
    "handler, 1,000 in flight": (scenarios.handler_memory, 1_000, 50),
    "push door": (scenarios.push_door, 20_000, 300),
    "poller + handler": (scenarios.poller_and_handler, 20_000, 300),
    "poller, in process": (scenarios.poller_in_process, 30_000, 300),
    "queue to gateway, 50/s": (scenarios.queue_to_gateway, 1_000, 50),
    "gateway outage": (outage, 10_000, 400),
    "100,000 queued": (scenarios.deep_queue, 100_000, 1_000),
}
"""Name -> scenario, requests, requests of a quick run."""

GOALS = {
    ("handler alone", "CPU ms"): "≤ 0.35",
    ("handler alone", "start s"): "≤ 0.6",
    ("handler, 1,000 in flight", "RSS in flight MB"): "≤ 110",
    ("poller + handler", "requests/s"): "≥ 2,000",
    ("poller + handler", "CPU ms"): "≤ 0.30",
    ("poller, in process", "requests/s"): "≥ 3,500",
    ("queue to gateway, 50/s", "p50 ms"): "≤ 15",
    ("queue to gateway, 50/s", "p99 ms"): "≤ 50",
    ("gateway outage", "calls a request at 10 %"): "≤ 1.2",
    ("gateway outage", "probes/s"): "≤ 1 a process",
    ("gateway outage", "poller CPU %"): "≤ 5",
    ("gateway outage", "handler CPU %"): "≤ 5",
    ("gateway outage", "seconds to 90 % goodput"): "≤ 30",
}


@click.command()
@click.argument("names", nargs=-1)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures there too.")
@click.option("--quick", is_flag=True, help="Just show that everything runs.")
@click.option("--runs", default=3, show_default=True, help="Runs of each; the median is shown.")
def main(names: tuple[str, ...], json_path: Path | None, quick: bool, runs: int) -> None:
    """Run scenarios (all, or those whose names contain one of NAMES); the bare forwarder always runs first."""
    console, found = Console(), dict[str, Figures]()
    for name, (scenario, count, quick_count) in SCENARIOS.items():
        if names and name != "bare forwarder" and not any(part in name for part in names):
            continue
        console.print(f"[dim]{name} ...[/]")
        repeats = 1 if quick or count >= 100_000 or scenario is outage else runs
        found[name] = median([scenario(quick_count if quick else count) for _ in range(repeats)])
    console.print(table(found))
    if json_path:
        json_path.write_bytes(msgspec.json.encode(found))


def median(several: list[Figures]) -> Figures:
    """The middle value of each figure."""
    return {name: sorted(one[name] for one in several)[len(several) // 2] for name in several[0]}


def table(found: dict[str, Figures]) -> Table:
    """A row for each figure, with the bare forwarder's of the same run and the ratio."""
    bare = found["bare forwarder"]
    shown = Table("scenario", "figure", title="Measured in one run", title_justify="left")
    for column in ("value", "bare forwarder", "ratio", "goal"):
        shown.add_column(column, justify="right")
    for name, figures in found.items():
        for figure, value in figures.items():
            reference = bare.get(figure) if name != "bare forwarder" else None
            beside = ("", "") if not reference else (number(reference), f"{value / reference:.2f}")
            shown.add_row(name, figure, number(value), *beside, GOALS.get((name, figure), ""))
    return shown


def number(value: float) -> str:
    """Three digits, or whole thousands."""
    return f"{value:,.3g}" if value < 1_000 else f"{value:,.0f}"


if __name__ == "__main__":
    main()
