"""`python -m tests.chaos --size short|full|release`: the long runs; prints what was done and what it showed."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import click

from tests.chaos.crash_ways import WAYS, run_crash_points
from tests.chaos.faults import Plan
from tests.chaos.redelivery import run_redelivery
from tests.chaos.run import run

PLANS = {
    "short": Plan(8_000, 60, terminations=6, stalls=8, valkey_kills=3, network=12, storms=3, scalings=1),
    "full": Plan(
        150_000, 1_000, terminations=200, stalls=150, valkey_kills=40, network=96, storms=40, scalings=20
    ),
    "release": Plan(
        1_000_000,
        5_000,
        terminations=1_000,
        stalls=750,
        valkey_kills=200,
        network=456,
        storms=200,
        scalings=100,
        workers=32,
        answer_seconds=0.1,
    ),
}


CRASH_REPEATS = {"short": 1, "full": 20, "release": 20}
REDELIVERY_KILLS = {"short": 3, "full": 30, "release": 100}
PARTS = ("faults", "crash-points", "redelivery")


@click.command()
@click.option("--size", type=click.Choice(sorted(PLANS)), default="full", show_default=True)
@click.option("--seed", type=int, default=lambda: secrets.randbelow(10**6), help="Orders the faults.")
@click.option("--only", type=click.Choice(PARTS), help="One part instead of all.")
def main(size: str, seed: int, only: str | None) -> None:
    """Run the faults of one size, the crash points, and kills with the leases that are the default."""
    parts: dict[str, Callable[[Path], str]] = {
        "faults": lambda folder: str(run(folder, seed, PLANS[size])),
        "crash-points": lambda folder: _crash_points(folder, CRASH_REPEATS[size]),
        "redelivery": lambda folder: str(run_redelivery(folder, seed, REDELIVERY_KILLS[size])),
    }
    click.echo(f"seed {seed}, {PLANS[size]}")
    for name in (only,) if only else PARTS:
        click.echo(f"--- {name}")
        click.echo(_kept_where_failed(parts[name]))


def _crash_points(folder: Path, repeats: int) -> str:
    told = []
    for transport in WAYS:
        (folder / transport).mkdir()
        deaths = run_crash_points(folder / transport, transport, repeats)
        points = len(WAYS[transport][1])
        told.append(
            f"{transport}: {points} crash points {repeats} times each, {deaths} SIGKILLs: all answered once"
        )
    return "\n".join(told)


def _kept_where_failed(part: Callable[[Path], str]) -> str:
    """What a run that fails has seen is kept, and its folder named."""
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        told = part(folder)
    except BaseException:
        click.echo(f"what was seen: {folder}", err=True)
        raise
    shutil.rmtree(folder)
    return told


if __name__ == "__main__":
    main()
