"""A real pseudo-terminal with a command in it: type, resize, read the screen."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence
from typing import Any, Self

from tests.waiting import wait_until

ENTER_SCREEN, LEAVE_SCREEN = "\x1b[?1049h", "\x1b[?1049l"
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
_HOME = "\x1b[H"
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
# A new session's leader gets the terminal that it opens first; then Ctrl-C and changes of size reach it.
_LEADER = "import os; os.close(os.open(os.ttyname(1), os.O_RDWR)); from handlers.cli import main; main()"


class Terminal:
    """`async-processor <arguments>` in a terminal; leaving the context kills the command."""

    def __init__(
        self,
        arguments: Sequence[str],
        variables: Mapping[str, str],
        size: tuple[int, int] = (30, 100),
        *,
        has_keys: bool = True,
    ) -> None:
        self._master, self._slave = pty.openpty()
        self.resize(*size)
        self.before = self.modes()
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _LEADER, *arguments],
            stdin=self._slave if has_keys else subprocess.DEVNULL,
            stdout=self._slave,
            stderr=self._slave,
            env={**kept, "TERM": "xterm-256color", **variables},
            start_new_session=True,
        )
        self._written = b""

    def resize(self, lines: int, columns: int) -> None:
        """Change the window's size, about which the kernel notifies the foreground process."""
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def modes(self) -> list[Any]:
        """Echo, line mode and special keys, which must be restored when the command ends."""
        return termios.tcgetattr(self._slave)

    def press(self, keys: str) -> None:
        """Type; `\\x03` is Ctrl-C."""
        os.write(self._master, keys.encode())

    @property
    def written(self) -> str:
        """All bytes that reached the terminal, with escapes."""
        while select.select([self._master], [], [], 0)[0]:
            self._written += os.read(self._master, 65_536)
        return self._written.decode("utf-8", "replace")

    def screen(self) -> list[str]:
        """The lines of the latest frame, without colours; it may still be on its way."""
        return _ESCAPES.sub("", self.written.rpartition(_HOME)[2]).splitlines()

    def wait_for(self, *texts: str) -> None:
        """Wait until the latest frame contains all of `texts`."""

        def is_shown() -> bool:
            shown = "\n".join(self.screen())
            return all(text in shown for text in texts)

        try:
            wait_until(is_shown, f"{texts} on the screen")
        except AssertionError as error:
            raise AssertionError("\n".join([str(error), *self.screen()])) from None

    def end(self) -> int:
        """Wait for the command to end by itself; returns its exit code."""
        # Unread output would block a command that writes, so read while waiting for its end.
        wait_until(lambda: (self.written, self.process.poll())[1] is not None, "the end of the command")
        return self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)
        os.close(self._slave)
