"""Connections whose time limit counts silence: a large reply or command on a slow link may take as long as it moves.

The library limits the whole reply, and the whole command; ten megabytes at 2 MB/s would never come through.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import Any, Final

from redis._parsers.hiredis import _AsyncHiredisParser
from redis.asyncio.connection import AbstractConnection, ConnectionPool

PIECE_BYTES: Final = 262_144
"""What is sent under one time limit."""


class ProgressParser(_AsyncHiredisParser):
    """Begins the time limit of a read anew with all that arrives."""

    __slots__ = ("_connection",)

    def on_connect(self, connection: Any) -> None:
        """As the library's; the connection has the limit of the read under way."""
        super().on_connect(connection)  # type: ignore[no-untyped-call]  # the library's
        self._connection = connection

    async def read_from_socket(self) -> bool:
        """As the library's."""
        has_read = bool(await super().read_from_socket())  # type: ignore[no-untyped-call]  # as above
        limit, seconds = self._connection._active_read_timeout, self._connection.socket_timeout
        if limit is not None and seconds is not None:
            limit.reschedule(asyncio.get_running_loop().time() + seconds)
        return has_read


class _ProgressiveSend(AbstractConnection):
    async def send_packed_command(
        self, command: bytes | str | Iterable[bytes], check_health: bool = True
    ) -> None:
        """As the library's, in pieces that have a time limit each."""
        if isinstance(command, str):
            command = command.encode()
        for piece in pieces([command] if isinstance(command, bytes) else command):
            await super().send_packed_command(piece, check_health)
            check_health = False


def pieces(parts: Iterable[bytes]) -> Iterator[list[bytes]]:
    """The same bytes in lists of at most `PIECE_BYTES`."""
    piece: list[bytes] = []
    size = 0
    for part in parts:
        view = memoryview(part)
        while size + len(view) > PIECE_BYTES:
            taken, view = view[: PIECE_BYTES - size], view[PIECE_BYTES - size :]
            yield [*piece, taken]  # type: ignore[list-item]  # a view of bytes is written as bytes are
            piece, size = [], 0
        if len(view):
            piece.append(view if len(view) != len(part) else part)  # type: ignore[arg-type]  # as above
            size += len(view)
    if piece:
        yield piece


def progressive(connection_class: type[AbstractConnection]) -> type[AbstractConnection]:
    """`connection_class` (TCP, TLS, Unix socket, a Sentinel's) with such sends."""
    return type(f"Progressive{connection_class.__name__}", (_ProgressiveSend, connection_class), {})


def limit_silence(pool: ConnectionPool) -> None:
    """Let the time limit of the connections that `pool` will open count silence."""
    pool.connection_class = progressive(pool.connection_class)
    pool.connection_kwargs["parser_class"] = ProgressParser
