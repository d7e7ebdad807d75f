"""Untrusted text sends no commands to a terminal; a pipe gets it unchanged."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from click.types import StringParamType

from handlers.cli.main import main
from handlers.cli.shell import TextType, escape_unencodable, for_output
from handlers.client import AsyncClient
from handlers.contract.result import Result
from tests.servers.forked import LONG_REDIS_TIMEOUT

HOSTILE = "a\x1b[2J\x9b31m\x07\u202eb\nc\td"


class Terminal(io.StringIO):
    """Says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_no_control_character() -> None:
    assert for_output(HOSTILE, Terminal()) == "a�[2J�31m��b\nc\td"


def test_a_pipe_gets_text_unchanged() -> None:
    assert for_output(HOSTILE, io.StringIO()) == HOSTILE


@pytest.mark.parametrize("is_answered", [True, False])
def test_a_printed_result_sends_no_terminal_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, valkey_url: str, is_answered: bool
) -> None:
    code = 200 if is_answered else 0
    error_code = "" if is_answered else HOSTILE

    async def answered(*_arguments: object, **_options: object) -> Result:
        return Result("r", code, payload=HOSTILE, error_code=error_code, error_message=HOSTILE)

    out = Terminal()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr(AsyncClient, "wait", answered)
    arguments = ["submit", "--wait", "--redis-url", valkey_url, "--queue", "hostile"]
    with pytest.raises(SystemExit):
        main([*arguments, "--prompt", "hi", "--model", "m"])
    message = out.getvalue() + capsys.readouterr().err
    assert "[2J" in message
    assert "\x1b" not in message
    assert "\x9b" not in message


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
@pytest.mark.parametrize(
    "command", ["where unused", "top --once", "results --for 0s", "dead list", "submit - --deadline 1h", "--help"]
)
def test_a_closed_standard_stream_is_no_failure(valkey_url: str, command: str, closed: str) -> None:
    program = Path(sys.executable).parent / "async-processor"
    environment = {**os.environ, "REDIS_URL": valkey_url, **LONG_REDIS_TIMEOUT}
    line = f"exec {program} {command} {closed}"
    done = subprocess.run(
        ["sh", "-c", line], check=False, input="", env=environment, capture_output=True, text=True, timeout=60
    )
    assert "Traceback" not in done.stderr
    expected = {"where unused": 1, "submit - --deadline 1h": 2}
    assert done.returncode == expected.get(command, 0)


def test_every_text_of_every_command_is_checked() -> None:
    context = click.Context(main)
    found: list[str] = []

    def visit(name: str, command: click.Command) -> None:
        found.extend(f"{name} {one.name}" for one in command.params if type(one.type) is StringParamType)
        if isinstance(command, click.Group):
            for each in command.list_commands(context):
                inner = command.get_command(context, each)
                assert inner is not None
                visit(f"{name} {each}", inner)

    visit("", main)
    assert found == []


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_characters_that_the_encoding_lacks_are_escaped_as_in_json(encoding: str) -> None:
    escape_unencodable()
    value = {"text": "é 語 😀 \udcff"}
    written = json.dumps(value, ensure_ascii=False).encode(encoding, "json-escapes")
    assert json.loads(written.decode(encoding)) == value


def test_invalid_utf_8_is_refused_in_one_line() -> None:
    with pytest.raises(click.BadParameter) as refused:
        TextType().convert("a\udcff", None, None)
    assert str(refused.value) == "expected UTF-8 text, got b'a\\xff'"


@pytest.mark.parametrize(
    "arguments",
    [
        *(
            ["where", ""],
            ["cancel", "r1", ""],
            ["dead", "show", ""],
            ["dead", "requeue", ""],
            ["dead", "drop", " "],
        ),
        *(["batch", "where", "out.jsonl", ""], ["batch", "cancel", "out.jsonl", ""]),
    ],
    ids=" ".join,
)
def test_an_empty_id_is_refused(arguments: list[str]) -> None:
    done = CliRunner().invoke(main, arguments, env={"REDIS_URL": "redis://127.0.0.1:1"})
    assert done.exit_code == 2
    assert "expected an id, got '" in done.stderr


def test_a_misspelt_command_suggests_the_right_one() -> None:
    for name, meant in (("sumbit", "submit"), ("cancle", "cancel"), ("statsu", "status")):
        done = CliRunner().invoke(main, [name])
        assert (done.exit_code, f"did you mean {meant}?" in done.stderr.lower()) == (2, True), done.stderr
    assert "mean" not in CliRunner().invoke(main, ["zzz"]).stderr
