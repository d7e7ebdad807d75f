"""`python -m tests.chaos --size full|release`: the long runs; prints seed, faults and executions."""

from __future__ import annotations

import secrets
import tempfile
from pathlib import Path

import click

from tests.chaos.run import Plan, run

PLANS = {
    "full": Plan(requests=150_000, kills=1_000, terminations=200, stalls=150, valkey_kills=40),
    "release": Plan(requests=1_000_000, kills=5_000, terminations=1_000, stalls=750, valkey_kills=200),
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
