"""`make bench`: measure the doors and the poller against a bare forwarder, in one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.table import Table

from handlers.demo.valkey import NoValkey, find_valkey
from tests.bench import scenarios, starts
from tests.bench.nginx import nginx_gateway, nginx_program
from tests.bench.outage import outage
from tests.bench.scenarios import Figures
from tests.servers.presence import INSTALL

NGINX = "nginx"
"""Scenarios with this word in their name use nginx as gateway, since a Python gateway hides half of the difference."""
BARE, BARE_NGINX = "bare forwarder", "bare forwarder, nginx"

SCENARIOS: dict[str, tuple[Callable[[int], Figures], int, int]] = {
    BARE: (scenarios.bare_forwarder, 20_000, 300),
    "handler alone": (scenarios.handler_alone, 20_000, 300),
    "handler, 1,000 in flight": (scenarios.handler_memory, 1_000, 50),
    "push door": (scenarios.push_door, 20_000, 300),
    "push door, 1,000 in flight": (scenarios.push_memory, 1_000, 50),
    "poller + handler": (scenarios.poller_and_handler, 20_000, 300),
    "poller, in process": (scenarios.poller_in_process, 30_000, 300),
    "poller, first claim": (starts.first_claim, 1, 1),
    "push door, ready": (starts.push_door_ready, 1, 1),
    "poller, idle": (starts.idle_poller, 60, 2),
    "queue to gateway, 50/s": (scenarios.queue_to_gateway, 1_000, 50),
    "gateway outage": (outage, 10_000, 400),
    "100,000 queued": (scenarios.deep_queue, 100_000, 1_000),
    BARE_NGINX: (partial(scenarios.bare_forwarder, serve=nginx_gateway), 20_000, 300),
    "handler alone, nginx": (partial(scenarios.handler_alone, serve=nginx_gateway), 20_000, 300),
    "push door, nginx": (partial(scenarios.push_door, serve=nginx_gateway), 20_000, 300),
    **{
        f"poller + handler, nginx, {workers:,} workers": (
            partial(scenarios.poller_and_handler, serve=nginx_gateway, workers=workers),
            20_000,
            300,
        )
        for workers in (64, 512, 2_000)
    },
    **{
        f"poller, in process, nginx, {workers:,} workers": (
            partial(scenarios.poller_in_process, serve=nginx_gateway, workers=workers),
            30_000,
            300,
        )
        for workers in (64, 512, 2_000)
    },
}
"""Name -> scenario, requests, requests of a quick run."""

GOALS = {
    ("handler alone", "start s"): "≤ 0.5",
    ("handler, 1,000 in flight", "RSS in flight MB"): "≤ 90",
    ("poller, first claim", "first claim s"): "≤ 0.35",
    ("push door, ready", "start s"): "≤ 0.9",
    ("poller, idle", "CPU %"): "≤ 1",
    ("push door, 1,000 in flight", "RSS in flight MB"): "≤ 150",
    ("queue to gateway, 50/s", "p50 ms"): "≤ 10",
    ("queue to gateway, 50/s", "p99 ms"): "≤ 25",
    ("gateway outage", "calls a request at 10 %"): "≤ 1.2",
    ("gateway outage", "probes/s"): "≤ 1 a process",
    ("gateway outage", "poller CPU %"): "≤ 5",
    ("gateway outage", "handler CPU %"): "≤ 5",
    ("gateway outage", "seconds to 90 % goodput"): "≤ 30",
}
RATIO_GOALS = {
    "handler alone, nginx": 1.45,
    "push door, nginx": 2.3,
    "poller + handler, nginx, 64 workers": 1.1,
    "poller, in process, nginx, 64 workers": 1.1,
}
"""CPU per request, as a multiple of the bare forwarder's with the same gateway."""


@click.command()
@click.argument("names", nargs=-1)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures there too.")
@click.option("--quick", is_flag=True, help="Just show that everything runs.")
@click.option("--runs", default=3, show_default=True, help="Runs of each; the median is shown.")
def main(names: tuple[str, ...], json_path: Path | None, quick: bool, runs: int) -> None:
    """Run scenarios (all, or those whose names contain one of NAMES); the bare forwarders always run first."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 120)
    chosen = [name for name in SCENARIOS if not names or any(part in name for part in names)]
    bare = {BARE_NGINX if NGINX in name else BARE for name in chosen}
    chosen = [*sorted(bare), *(name for name in chosen if name not in bare)]
    if missing := missing_servers(chosen):
        raise click.ClickException(f"missing: {', '.join(missing)}. Install with: {INSTALL}")
    runs_of: dict[str, list[Figures]] = {name: [] for name in chosen}
    failed = set[str]()
    # Runs of one scenario are spread over the whole time, since a shared machine is slower at some times than others.
    for run in range(1 if quick else runs):
        for name in chosen:
            scenario, count, quick_count = SCENARIOS[name]
            if name in failed or (run and (count >= 100_000 or scenario is outage)):
                continue
            console.print(f"[dim]{name} ...[/]")
            try:
                runs_of[name].append(scenario(quick_count if quick else count))
            except Exception:  # noqa: BLE001  # the other scenarios are still worth their time
                console.print_exception(max_frames=4)
                console.print(f"[red]{name} failed[/]")
                failed.add(name)
    found = {name: median(figures) for name, figures in runs_of.items() if figures}
    console.print(table(found))
    if json_path:
        json_path.write_bytes(msgspec.json.encode(found))
    if failed:
        raise SystemExit(1)


def missing_servers(names: Sequence[str]) -> list[str]:
    """The servers that these scenarios need and this machine does not have."""
    missing = ["nginx"] if any(NGINX in name for name in names) and nginx_program() is None else []
    try:
        find_valkey()
    except NoValkey:
        missing.append("valkey-server")
    return missing


def median(several: list[Figures]) -> Figures:
    """The middle value of each figure."""
    return {name: sorted(one[name] for one in several)[len(several) // 2] for name in several[0]}


def table(found: dict[str, Figures]) -> Table:
    """A row for each figure, with the bare forwarder's figure of the same run and the ratio."""
    shown = Table("scenario", "figure", title="Measured in one run", title_justify="left")
    for column in ("value", "bare forwarder", "ratio", "goal"):
        shown.add_column(column, justify="right")
    for name, figures in found.items():
        bare_name = BARE_NGINX if NGINX in name else BARE
        bare = found.get(bare_name, {}) if name != bare_name else {}
        for figure, value in figures.items():
            reference = bare.get(figure)
            beside = ("", "") if not reference else (number(reference), f"{value / reference:.2f}")
            goal = GOALS.get((name, figure), "")
            if figure == "CPU ms" and name in RATIO_GOALS:
                goal = f"ratio ≤ {RATIO_GOALS[name]}"
            shown.add_row(name, figure, number(value), *beside, goal)
    return shown


def number(value: float) -> str:
    """Three digits, or whole thousands."""
    return f"{value:,.3g}" if value < 1_000 else f"{value:,.0f}"


if __name__ == "__main__":
    main()
