"""Processes of the product forked from a template that has imported everything: a start costs a tenth of the CPU.

Such a process runs the product's own command with its own environment, session and output, and ends as any other.
Only the imports are not repeated: tests of the start itself use `Child`.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import multiprocessing.connection
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import cast

import handlers.cli
from handlers.demo.gateway.__main__ import main as run_gateway
from handlers.demo.servers import Child

COMMAND = str(Path(sys.executable).parent / "async-processor")
"""The product's command, as a shell finds it."""
LONG_REDIS_TIMEOUT = {"REDIS_TIMEOUT_SECONDS": "60"}
"""For commands that give up when Redis does not answer: on a busy machine it may need longer than by default."""
_LISTENING = re.compile(r"listening on (http://\S+)")
_TEMPLATE = "tests.servers.forked_template"
_REAPING = threading.Lock()
"""A start looks for the ended among all processes, and two threads must not read one exit code."""


class ForkedProcess:
    """A process that runs `target` with `arguments`; what `Child` uses of a `subprocess.Popen`."""

    def __init__(self, target: Callable[..., None], *arguments: object) -> None:
        forking = multiprocessing.get_context("forkserver")
        forking.set_forkserver_preload([_TEMPLATE])
        self._process = forking.Process(target=target, args=arguments, daemon=True)  # ends with the tests
        with _REAPING:
            self._process.start()
        self.pid = cast(int, self._process.pid)

    @property
    def returncode(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        with _REAPING:
            return self._process.exitcode

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end, at most `timeout` seconds; returns its exit code. Raises `subprocess.TimeoutExpired`."""
        multiprocessing.connection.wait([self._process.sentinel], timeout)
        code = self.returncode
        if code is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal; a no-op once it has ended."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # the template has just seen its end
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


class ForkedChild(Child):
    """A `Child` whose command is the product's or the simulated gateway's, forked from the template."""

    @staticmethod
    def start(command: Sequence[str], environment: Mapping[str, str], output: int) -> subprocess.Popen[bytes]:
        """Fork the process; its output is written to the descriptor `output`."""
        return cast("subprocess.Popen[bytes]", _forked(command, environment, output, output))


def run_forked(
    command: Sequence[str], environment: Mapping[str, str], timeout_seconds: float = 240
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, as `subprocess.run` does. Raises `subprocess.TimeoutExpired`."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = _forked(command, environment, output.fileno(), errors.fileno())
        try:
            code = process.wait(timeout_seconds)
        finally:
            process.kill()
        texts = [os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0) for file in (output, errors)]
    return subprocess.CompletedProcess(list(command), code, texts[0].decode(), texts[1].decode())


def _forked(command: Sequence[str], environment: Mapping[str, str], output: int, errors: int) -> ForkedProcess:
    # A Connection is a descriptor that can be passed to another process.
    inherited = [Connection(os.dup(one), readable=False) for one in (output, errors)]
    process = ForkedProcess(run_command, list(command), dict(environment), *inherited)
    for one in inherited:
        one.close()
    return process


@contextlib.contextmanager
def running_gateway(*arguments: str) -> Iterator[str]:
    """Run the simulated gateway on a free port, with more of its arguments; gives its URL."""
    with ForkedChild("gateway", [sys.executable, "-m", "handlers.demo.gateway", *arguments]) as gateway:
        yield gateway.wait_for(lambda output: found[1] if (found := _LISTENING.search(output)) else None)


def run_command(command: Sequence[str], environment: Mapping[str, str], output: Connection, errors: Connection) -> None:
    """Run the command in this process, as if a shell had started it. Raises `ValueError` for a foreign command."""
    os.setsid()
    os.dup2(output.fileno(), 1)
    os.dup2(errors.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    match command:
        case [program, *_] if program == COMMAND:
            sys.argv = list(command)
            importlib.reload(handlers.cli).main()  # its import installs the first handler of SIGTERM
        case [_, "-m", "handlers.demo.gateway", *_]:
            sys.argv = list(command[2:])
            run_gateway()
        case _:
            raise ValueError(f"only the product's command and the simulated gateway are forked, not {command}")
