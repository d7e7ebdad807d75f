"""`async-processor check`: before and after deploying, is everything there that these settings need?"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING

import click

from handlers.contract.errors import InvalidSetting

if TYPE_CHECKING:
    from handlers.settings.settings import Settings
    from handlers.wiring.checks import Finding

PARTS = ("gateway", "redis", "handler", "pubsub", "prometheus", "gates")


@click.command(
    epilog="""\b
Examples:
  async-processor check
  async-processor check --only redis --only gateway
  async-processor check --json | jq '.findings[] | select(.state != "ok")'

Exit codes: 0 no fault; 1 a fault, each with its fix; 2 a wrong setting.""",
)
@click.option(
    "--only", "parts", multiple=True, type=click.Choice(PARTS), help="This part alone; may be repeated."
)
@click.option("--json", "is_json", is_flag=True, help="For scripts.")
@click.option(
    "--settings/--no-settings", "has_settings", default=True, help="Print the settings too, secrets masked."
)
def check(parts: tuple[str, ...], is_json: bool, has_settings: bool) -> None:
    """Read the settings, reach everything they name, and say what to do about what is wrong."""
    from handlers.cli.main import fail
    from handlers.settings.settings import load_settings
    from handlers.wiring.checks import default_parts, run_checks

    try:
        settings = load_settings(os.environ)  # noqa: TID251  # the process's entry
        findings = asyncio.run(run_checks(settings, parts or default_parts(settings)))
    except InvalidSetting as error:
        fail(error)
    if is_json:
        _print_json(settings, findings)
    else:
        _print_tables(settings, findings, has_settings=has_settings)
    sys.exit(1 if any(finding.state == "fault" for finding in findings) else 0)


def _print_json(settings: Settings, findings: list[Finding]) -> None:
    from dataclasses import asdict

    import msgspec

    click.echo(
        msgspec.json.encode(
            {"settings": settings.shown(), "findings": [asdict(finding) for finding in findings]}
        )
    )


def _print_tables(settings: Settings, findings: list[Finding], *, has_settings: bool) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if has_settings:
        given = Table("variable", "value", box=None, title="Settings", title_justify="left")
        for name, value in settings.shown().items():
            given.add_row(name, "" if value in ("", None) else escape(str(value)))
        console.print(given, "")
    table = Table("", "what", "found", "what to do", box=None)
    marks = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "fault": "[bold red]FAULT[/]"}
    for finding in findings:
        table.add_row(
            marks[finding.state], *(escape(text) for text in (finding.what, finding.found, finding.fix))
        )
    console.print(table)
