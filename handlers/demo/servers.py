"""Servers on this machine for the demo and the tests: a child process, a free port."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Self

from handlers.contract.errors import AsyncProcessorError

_LOG_LINES: Final = 30
_POLL_SECONDS: Final = 0.02


class ChildFailed(AsyncProcessorError):
    """A process did not start; the message ends with its last output."""


class Child:
    """A running process; `variables` are added to its environment.

    Its output goes to a temporary file.
    """

    def __init__(self, name: str, command: Sequence[str], variables: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `stop`
        environment = {**os.environ, **(variables or {})}  # noqa: TID251  # a child inherits the terminal's environment
        self.process = self.start(command, environment, self._log.fileno())

    @staticmethod
    def start(command: Sequence[str], environment: Mapping[str, str], output: int) -> subprocess.Popen[bytes]:
        """Start the process; it writes to the file descriptor `output`."""
        return subprocess.Popen(  # noqa: S603  # commands of our own
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # so that Ctrl-C reaches our process only
        )

    def output(self) -> str:
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode("utf-8", "replace")

    def wait_for(self, found: Callable[[str], str | None], timeout_seconds: float = 60.0) -> str:
        """Wait until `found` returns a value for the output. Raises `ChildFailed`."""
        end = time.monotonic() + timeout_seconds
        while True:
            value = found(self.output())
            if value is not None:
                return value
            if self.process.poll() is not None:
                raise ChildFailed(f"{self.name} ended with code {self.process.returncode}:\n{self.log_tail()}")
            if time.monotonic() > end:
                raise ChildFailed(f"{self.name} was not ready in {timeout_seconds:g} s:\n{self.log_tail()}")
            time.sleep(_POLL_SECONDS)

    def log_tail(self) -> str:
        return "\n".join(self.output().splitlines()[-_LOG_LINES:])

    def stop(self, timeout_seconds: float = 5.0) -> None:
        """Stop the process with SIGTERM, then SIGKILL. A no-op if it has ended."""
        self.process.terminate()
        try:
            self.process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()


_FIRST: Final = 12_000
_LAST: Final = 32_000
"""Highest port: below Linux's range for outgoing connections (from 32768).

An outgoing connection could use a port of that range before the server listens, and a client that retries such a
port can connect to itself.
"""
_TRIES: Final = 1_000


def free_port() -> int:
    """A free port of the loopback interface. Raises `OSError` if none is found."""
    for _ in range(_TRIES):
        port = _FIRST + secrets.randbelow(_LAST - _FIRST)  # two test processes may share the seed of `random`
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
            return port
    raise OSError(f"no free port on 127.0.0.1 between {_FIRST} and {_LAST}")
