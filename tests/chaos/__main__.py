"""`python -m tests.chaos --size short|full|release`: the long runs; prints what was done and what it showed."""

from __future__ import annotations

import secrets
import tempfile
from pathlib import Path

import click

from tests.chaos.faults import Plan
from tests.chaos.run import run

PLANS = {
    "short": Plan(8_000, 60, terminations=6, stalls=8, valkey_kills=3, network=6, storms=3, scalings=1),
    "full": Plan(
        150_000, 1_000, terminations=200, stalls=150, valkey_kills=40, network=90, storms=40, scalings=20
    ),
    "release": Plan(
        1_000_000,
        5_000,
        terminations=1_000,
        stalls=750,
        valkey_kills=200,
        network=450,
        storms=200,
        scalings=100,
    ),
}


@click.command()
@click.option("--size", type=click.Choice(sorted(PLANS)), default="full", show_default=True)
@click.option("--seed", type=int, default=lambda: secrets.randbelow(10**6), help="Orders the faults.")
def main(size: str, seed: int) -> None:
    """Run the faults of one size."""
    click.echo(f"seed {seed}, {PLANS[size]}")
    with tempfile.TemporaryDirectory() as folder:
        click.echo(run(Path(folder), seed, PLANS[size]))


if __name__ == "__main__":
    main()
