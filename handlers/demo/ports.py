"""A port for a server that cannot choose one itself and say which."""

from __future__ import annotations

import contextlib
import secrets
import socket
from typing import Final

_FIRST: Final = 12_000
_LAST: Final = 32_000
"""Below what Linux gives to outgoing connections (32768 on). One of those could take the port before the server
listens, and a client that keeps knocking at a port of theirs can meet itself there."""
_TRIES: Final = 1_000


def free_port() -> int:
    """A port of the loopback interface that nobody listened on a moment ago. Raises `OSError` where none is free."""
    for _ in range(_TRIES):
        port = _FIRST + secrets.randbelow(_LAST - _FIRST)  # two test processes may share the seed of `random`
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
            return port
    raise OSError(f"no free port on 127.0.0.1 between {_FIRST} and {_LAST}")
