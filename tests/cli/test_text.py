"""What a stranger wrote commands no terminal; a pipe gets it byte for byte."""

from __future__ import annotations

import io
from typing import Any

import pytest

from handlers.cli.submit import _show
from handlers.cli.text import for_output
from handlers.contract.result import Result

HOSTILE = "a\x1b[2J\x9b31m\x07\u202eb\nc\td"


class Terminal(io.StringIO):
    """Says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_no_control_character() -> None:
    assert for_output(HOSTILE, Terminal()) == "a�[2J�31m��b\nc\td"


def test_a_pipe_gets_it_as_it_is() -> None:
    assert for_output(HOSTILE, io.StringIO()) == HOSTILE


@pytest.mark.parametrize("is_answered", [True, False])
def test_a_result_that_was_waited_for_commands_nobody(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, is_answered: bool
) -> None:
    out = Terminal()
    monkeypatch.setattr("sys.stdout", out)
    code = 200 if is_answered else 0
    error_code = "" if is_answered else HOSTILE
    _show(Result("r", code, payload=HOSTILE, error_code=error_code, error_message=HOSTILE))
    said = out.getvalue() + capsys.readouterr().err
    assert "\x1b" not in said
    assert "\x9b" not in said
