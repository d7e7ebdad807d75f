"""The one-line summary of each command is whole in the help of its group, in a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from handlers.cli.main import main

COLUMNS = 80


def groups(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Group]]:
    if isinstance(command, click.Group):
        yield path, command
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from groups(found, (*path, name))


GROUPS = dict(groups(main))


def test_all_command_groups_are_checked() -> None:
    assert {(), ("batch",), ("dead",), ("pubsub",)} <= GROUPS.keys()


@pytest.mark.parametrize("path", GROUPS, ids=" ".join)
def test_no_summary_is_cut(path: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(main, [*path, "--help"], env={"COLUMNS": str(COLUMNS)}).stdout
    names = GROUPS[path].list_commands(click.Context(GROUPS[path]))
    _, _, rest = shown.partition("\nCommands:\n")
    lines = rest.splitlines()[: len(names)]
    assert [line.split()[0] for line in lines] == names, "each summary is one line"
    assert [line for line in lines if not line.endswith(".") or line.endswith("...")] == []
    assert max(map(len, lines)) <= COLUMNS
