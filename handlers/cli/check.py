"""`async-processor check`: check the settings and the servers they name."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from handlers.cli.shell import printable, run_async
from handlers.contract.errors import InvalidSetting

if TYPE_CHECKING:
    from handlers.settings.settings import Settings
    from handlers.wiring.checks import Finding

PARTS = ("memory", "gateway", "redis", "handler", "pubsub", "prometheus", "gates")


@click.command(
    epilog="""\b
Examples:
  async-processor check
  async-processor check --only redis --only gateway
  async-processor check --json | jq '.findings[] | select(.state != "ok")'

\b
Parts:
  memory      MAX_IN_FLIGHT_BYTES against the memory limit
  gateway     the inference gateway
  redis       Redis, its clock and durability, and the queues
  handler     the dispatch door at HANDLER_URL
  pubsub      topics and subscriptions
  prometheus  the server that gates query
  gates       each gate's source

Exit codes: 0 no fault; 1 a check failed (the fix is printed); 2 a setting is invalid."""
)
@click.option(
    "--only",
    "parts",
    multiple=True,
    type=click.Choice(PARTS),
    help="Check only this part; may be repeated.  [default: all in use]",
)
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.option("--all", "is_all", is_flag=True, help="Print every setting, including defaults.")
def check(parts: tuple[str, ...], is_json: bool, is_all: bool) -> None:
    """Check the settings and the servers that they name.

    Each fault is printed with a fix.
    """
    from handlers.cli.main import fail_start
    from handlers.settings.settings import load_settings
    from handlers.wiring.checks import default_parts, run_checks

    variables = dict(os.environ)  # noqa: TID251  # the process's entry
    try:
        settings = load_settings(variables)
        findings = run_async(run_checks(settings, parts or default_parts(settings)))
    except InvalidSetting as error:
        fail_start(variables, error)
    if is_json:
        _print_json(settings, findings)
    else:
        _print_lines(settings, findings, is_all=is_all)
    sys.exit(1 if any(finding.state == "fault" for finding in findings) else 0)


def _print_json(settings: Settings, findings: list[Finding]) -> None:
    import msgspec
    from msgspec.structs import asdict

    click.echo(
        msgspec.json.encode({"settings": settings.shown(), "findings": [asdict(finding) for finding in findings]})
    )


def _print_lines(settings: Settings, findings: list[Finding], *, is_all: bool) -> None:
    """Print findings, then the changed settings or all of them."""
    marks = {"ok": "ok     ", "warning": "WARNING", "fault": "FAULT  "}
    colours = {"ok": "green", "warning": "yellow", "fault": "red"}
    for finding in findings:
        click.echo(f"{click.style(marks[finding.state], colours[finding.state])} {finding.what}: {finding.found}")
        if finding.fix:
            click.echo(f"        {finding.fix}")
    if not findings:
        click.echo("nothing to check: the settings use none of these parts")
    click.echo("\nAll settings:" if is_all else "\nSettings that differ from their defaults (--all shows every one):")
    for name, value in (settings.shown() if is_all else settings.changed()).items():
        click.echo(f"  {name} = {printable('' if value is None else str(value))}")
