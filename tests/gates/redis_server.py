"""A Valkey (or Redis) of one test process: no persistence, a free port, and a way to stop answering."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
from collections.abc import Iterator

from handlers.demo.servers import free_port
from tests.servers.presence import redis_program
from tests.servers.process import running_process
from tests.waiting import wait_until


class RedisServer:
    """A running server; `address` is host:port."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self._process = process
        self.port = port
        self.address = f"127.0.0.1:{port}"

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The server does not answer, as one that is stuck; connections stay open."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def running_redis() -> Iterator[RedisServer]:
    """A server that answers."""
    port = free_port()
    command = [
        redis_program(),
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
    ]
    with running_process(command, stdout=subprocess.DEVNULL) as process:
        wait_until(lambda: process.poll() is not None or _answers(port), "redis to answer")
        assert process.poll() is None, "redis ended at its start"
        yield RedisServer(process, port)


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as probe:
        probe.sendall(b"PING\r\n")
        return probe.recv(16).startswith(b"+PONG")
    return False
