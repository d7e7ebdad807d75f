"""`async-processor check`: check the settings and everything that they name."""

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
    "--only", "parts", multiple=True, type=click.Choice(PARTS), help="Check only this part; may be repeated."
)
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.option("--all", "is_all", is_flag=True, help="Print every setting, also those left at their default.")
def check(parts: tuple[str, ...], is_json: bool, is_all: bool) -> None:
    """Check the settings and the servers that they name; print a fix for each fault."""
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
        _print_tables(settings, findings, is_all=is_all)
    sys.exit(1 if any(finding.state == "fault" for finding in findings) else 0)


def _print_json(settings: Settings, findings: list[Finding]) -> None:
    from dataclasses import asdict

    import msgspec

    click.echo(
        msgspec.json.encode(
            {"settings": settings.shown(), "findings": [asdict(finding) for finding in findings]}
        )
    )


def _print_tables(settings: Settings, findings: list[Finding], *, is_all: bool) -> None:
    """Print findings, then the settings: those that differ from their defaults, or all."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table("", "what", "found", "what to do", box=None)
    marks = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "fault": "[bold red]FAULT[/]"}
    for finding in findings:
        table.add_row(
            marks[finding.state], *(escape(text) for text in (finding.what, finding.found, finding.fix))
        )
    shown = settings.shown() if is_all else settings.changed()
    title = "All settings" if is_all else "Settings that differ from their defaults (--all shows every one)"
    given = Table("variable", "value", box=None, title=title, title_justify="left")
    for name, value in shown.items():
        given.add_row(name, "" if value in ("", None) else escape(str(value)))
    console.print(table, "", given)
