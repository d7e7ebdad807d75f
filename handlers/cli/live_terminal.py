"""A terminal that a command redraws: keys as they are pressed, changes of its size, and a clean end."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Callable
from types import FrameType
from typing import Any, Final, Self

_CONTROL_CHARACTERS: Final = 6
"""Where `termios` keeps them."""


class LiveTerminal:
    """A context manager around the drawing. Leaving gives the terminal back as it was, also at SIGTERM.

    Where standard input is no terminal there are no keys, and the rest works. For the main thread only, since
    it sets handlers for signals. Ctrl-C stays `KeyboardInterrupt`; SIGTERM becomes `SystemExit(143)`.
    """

    def __init__(self) -> None:
        self._keys = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
        self._restore: Callable[[], None] = lambda: None
        self._handlers: dict[signal.Signals, Any] = {}
        self._resized, self._tell = os.pipe()
        os.set_blocking(self._resized, False)
        os.set_blocking(self._tell, False)

    def __enter__(self) -> Self:
        self._handlers = {
            signal.SIGWINCH: signal.signal(signal.SIGWINCH, self._on_resize),
            signal.SIGTERM: signal.signal(signal.SIGTERM, _on_term),
        }
        if self._keys is not None:
            self._restore = _cbreak(self._keys)
        return self

    def __exit__(self, *_error: object) -> None:
        self._restore()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        os.close(self._tell)
        os.close(self._resized)

    def wait(self, seconds: float) -> str:
        """The key that was pressed; empty when the time is over or the window has another size."""
        sources = [self._resized] if self._keys is None else [self._resized, self._keys]
        ready, _, _ = select.select(sources, [], [], seconds)
        if self._resized in ready:
            os.read(self._resized, 4_096)
        if self._keys is None or self._keys not in ready:
            return ""
        pressed = os.read(self._keys, 64)
        if not pressed:
            self._keys = None  # the terminal is gone; without this, select would return at once for ever
        return pressed.decode("utf-8", "replace")

    def _on_resize(self, _number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(BlockingIOError):  # full: it was told often enough
            os.write(self._tell, b"\0")


def _cbreak(terminal: int) -> Callable[[], None]:
    """Each key at once and without echo; none suspends, since the shell would get our screen. Returns the way back."""
    before = termios.tcgetattr(terminal)
    # DRAIN, not FLUSH: a key pressed before the first frame counts.
    tty.setcbreak(terminal, termios.TCSADRAIN)
    now = termios.tcgetattr(terminal)
    now[_CONTROL_CHARACTERS][termios.VSUSP] = bytes([os.fpathconf(terminal, "PC_VDISABLE")])
    termios.tcsetattr(terminal, termios.TCSADRAIN, now)
    return lambda: termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _on_term(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)
