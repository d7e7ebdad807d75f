"""A process forked from the template behaves like one that a shell started."""

from __future__ import annotations

import os
import re
import signal
import sys

import pytest

from tests.servers.forked import COMMAND, ForkedChild, run_forked

HANDLER = [COMMAND, "serve", "--target", "dispatch"]
VARIABLES = {"IGW_BASE_URL": "http://127.0.0.1:9", "HOST": "127.0.0.1", "PORT": "0", "DISPATCH_AUTH": "none"}
_READY = re.compile(r"\bready\b.*")


def test_output_errors_and_exit_code_are_kept_apart() -> None:
    helped = run_forked([COMMAND, "--help"], {})
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "Usage: async-processor" in helped.stdout

    refused = run_forked([COMMAND, "no-such-command"], {})
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "No such command" in refused.stderr


def test_it_has_the_given_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKERS", "of the tests")
    given = {"REDIS_URL": "redis://127.0.0.1:9", "IGW_BASE_URL": "http://127.0.0.1:9", "LOG_LEVEL": "loud"}
    refused = run_forked([COMMAND, "poll"], given).stderr
    assert "got 'loud'" in refused
    assert "WORKERS" not in refused


def test_a_signal_ends_it_as_the_command_ends() -> None:
    with ForkedChild("handler", HANDLER, VARIABLES) as child:
        child.wait_for(lambda output: found[0] if (found := _READY.search(output)) else None)
        assert os.getsid(child.process.pid) == child.process.pid
        child.process.terminate()
        assert child.process.wait(60) == 0


def test_a_kill_is_its_exit_code() -> None:
    with ForkedChild("handler", HANDLER, VARIABLES) as child:
        child.process.kill()
        assert child.process.wait(60) == -signal.SIGKILL
        child.process.terminate()  # it has ended: nothing happens


def test_a_foreign_command_is_refused() -> None:
    assert run_forked([sys.executable, "-c", "print(1)"], {}).returncode == 1
