"""A process forked from the template behaves like one that a shell started."""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
from multiprocessing.connection import Connection

from tests.servers.forked import COMMAND, ForkedChild, ForkedProcess, run_command, run_forked

HANDLER = [COMMAND, "serve", "--target", "dispatch"]
VARIABLES = {"IGW_BASE_URL": "http://127.0.0.1:9", "HOST": "127.0.0.1", "PORT": "0", "DISPATCH_AUTH": "none"}
_READY = re.compile(r"\bready\b.*")


def test_output_errors_and_exit_code_are_separate() -> None:
    helped = run_forked([COMMAND, "--help"], {})
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "Usage: async-processor" in helped.stdout

    refused = run_forked([COMMAND, "no-such-command"], {})
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "No such command" in refused.stderr


def run_in_a_template_with_a_setting(command: list[str], environment: dict[str, str], output: Connection) -> None:
    os.environ["WORKERS"] = "of the template"
    run_command(command, environment, output, output)


def test_a_forked_process_has_only_the_given_environment() -> None:
    given = {"REDIS_URL": "redis://127.0.0.1:9", "IGW_BASE_URL": "http://127.0.0.1:9", "LOG_LEVEL": "loud"}
    with tempfile.TemporaryFile() as file, Connection(os.dup(file.fileno()), readable=False) as output:
        process = ForkedProcess(run_in_a_template_with_a_setting, [COMMAND, "poll"], given, output)
        assert process.wait(60) == 2
        refused = os.pread(file.fileno(), 10_000, 0).decode()
    assert "got 'loud'" in refused
    assert "WORKERS" not in refused


def test_a_signal_ends_a_forked_process_with_the_commands_exit_code() -> None:
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
