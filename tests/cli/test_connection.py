"""The flags and variables that select the queue."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from handlers.cli.flags import QueueFlags
from handlers.cli.main import main
from handlers.cli.shell import name_warnings
from handlers.settings.environment import Environment
from tests.cli.test_help import groups

NAMES = [name.upper() for name in Environment.__struct_fields__]
CLIENTS = {
    (*path, name): command
    for path, group in groups(main)
    for name in group.list_commands(click.Context(group))
    if (command := group.get_command(click.Context(group), name)) is not None
    if not isinstance(command, click.Group)
    if any(parameter.envvar for parameter in command.params)
}


def test_f77_flags_show_no_password() -> None:
    assert "canary" not in repr(QueueFlags(redis_url="redis://:canary@host:6379"))


def test_most_commands_read_variables() -> None:
    names = {path[0] for path in CLIENTS}
    assert names == {"submit", "results", "where", "cancel", "webhook", "batch", "pubsub", "dead"}


@pytest.mark.parametrize("path", CLIENTS, ids=" ".join)
def test_a_client_command_warns_about_misspelt_variables(path: tuple[str, ...]) -> None:
    variables = [str(parameter.envvar) for parameter in CLIENTS[path].params if parameter.envvar]
    for name in variables:
        assert [text.partition("; ")[2] for text in name_warnings(CLIENTS[path], {name[:-1]: "x"})] == [
            f"did you mean {name}?"
        ]
    if "REDIS_URL" in variables:
        [text] = name_warnings(CLIENTS[path], {"REDIS_HOST": "x"})
        assert text.startswith("REDIS_HOST: unknown variable, ignored; expected one of REDIS_CA_FILE, ")


@pytest.mark.parametrize("path", CLIENTS, ids=" ".join)
def test_a_client_command_knows_the_settings_of_the_servers(path: tuple[str, ...]) -> None:
    others = {
        "REDIS_PORT_6379_TCP": "tcp://10.0.0.1:6379",
        "REQUEST_TOPIC_NAME": "x",
        "HOME": "/",
        "REDIS_PORT": "",
    }
    assert name_warnings(CLIENTS[path], {**dict.fromkeys(NAMES, "x"), **others}) == []


def test_the_warning_is_on_stderr() -> None:
    done = CliRunner().invoke(main, ["submit", "--prompt", "x"], env={"REDIS_URI": "redis://127.0.0.1:1"})
    assert "warning: REDIS_URI: unknown variable, ignored; did you mean REDIS_URL?\n" in done.stderr
    assert "REDIS_URI" not in done.stdout
