"""`python -m tests.chaos --size short|full|release`: the long runs, with a report."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import click

from tests.chaos.crash_ways import WAYS, run_crash_points
from tests.chaos.faults import Plan
from tests.chaos.loads import run_failing_tenant, run_full_redis, run_large, run_memory
from tests.chaos.redelivery import run_redelivery
from tests.chaos.run import run

PLANS = {
    "short": Plan(5_000, 60, terminations=6, stalls=8, valkey_kills=3, network=12, storms=3, scalings=1),
    "full": Plan(150_000, 1_000, terminations=200, stalls=150, valkey_kills=40, network=96, storms=40, scalings=20),
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
LARGE = {"short": (24, 1_000_000), "full": (400, 4_000_000), "release": (1_000, 9_000_000)}
"""Number of requests, and bytes of each."""
MEMORY = {"short": (24, 64), "full": (64, 256), "release": (64, 256)}
"""Requests of 9.9 MB, and answers of 7.9 MB."""
TENANT_SECONDS = {"short": 15, "full": 120, "release": 600}
FULL_ROUNDS = {"short": 1, "full": 10, "release": 30}
REDELIVERY_KILLS = {"short": 3, "full": 30, "release": 100}
PARTS = ("faults", "large", "memory", "failing-tenant", "full-redis", "crash-points", "redelivery")


@click.command()
@click.option("--size", type=click.Choice(sorted(PLANS)), default="full", show_default=True)
@click.option("--seed", type=int, default=lambda: secrets.randbelow(10**6), help="Orders the faults.")
@click.option("--only", type=click.Choice(PARTS), help="One part instead of all.")
def main(size: str, seed: int, only: str | None) -> None:
    """Run the faults of one size, the crash points, and kills with the default leases."""
    parts: dict[str, Callable[[Path], str]] = {
        "faults": lambda folder: str(run(folder, seed, PLANS[size])),
        "large": lambda folder: run_large(folder, seed, *LARGE[size]),
        "memory": lambda _folder: run_memory(*MEMORY[size]),
        "failing-tenant": lambda folder: run_failing_tenant(folder, seed, TENANT_SECONDS[size]),
        "full-redis": lambda folder: run_full_redis(folder, seed, FULL_ROUNDS[size]),
        "crash-points": lambda folder: _crash_points(folder, CRASH_REPEATS[size]),
        "redelivery": lambda folder: str(run_redelivery(folder, seed, REDELIVERY_KILLS[size])),
    }
    click.echo(f"seed {seed}, {PLANS[size]}")
    reported = {name: _reported(name, parts[name]) for name in ((only,) if only else PARTS)}
    click.echo("=== summary")
    for name, (is_passed, text) in reported.items():
        click.echo(f"--- {name}: {'passed' if is_passed else 'FAILED'}\n{text}")
    if not all(is_passed for is_passed, _ in reported.values()):
        raise SystemExit(1)


def _crash_points(folder: Path, repeats: int) -> str:
    reported = []
    for transport in WAYS:
        (folder / transport).mkdir()
        deaths = run_crash_points(folder / transport, transport, repeats)
        points = len(WAYS[transport][1])
        reported.append(
            f"{transport}: {points} crash points {repeats} times each, {deaths} SIGKILLs: all answered once"
        )
    return "\n".join(reported)


def _reported(name: str, part: Callable[[Path], str]) -> tuple[bool, str]:
    """Whether a part passed, with its report; a failing part keeps its folder and stops no other."""
    click.echo(f"--- {name}")
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        text = part(folder)
    except Exception as error:  # noqa: BLE001  # the summary reports any failure of a part
        traceback.print_exc()
        return False, f"{type(error).__name__}: {error}\nseen in {folder}"
    shutil.rmtree(folder)
    click.echo(text)
    return True, text


if __name__ == "__main__":
    main()
