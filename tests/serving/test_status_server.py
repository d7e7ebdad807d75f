"""The status page as a process: slow clients, large forms and busy views do not stop its answers to probes."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from handlers.demo.servers import free_port
from tests.servers.process import running_process
from tests.waiting import wait_until

COMMAND = str(Path(sys.executable).parent / "async-processor")


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The port of a page whose Redis does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent_url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        variables = {"PATH": os.environ["PATH"], "REDIS_URL": silent_url, "REDIS_TIMEOUT_SECONDS": "60"}
        port = free_port()
        with running_process([COMMAND, "status", "--port", str(port)], env=variables):
            wait_until(lambda: is_open(port), "the status page")
            yield port


def is_open(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


def status_of(port: int, path: str, method: str = "GET", body: bytes = b"") -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path, body, {"Content-Type": "application/x-www-form-urlencoded"})
        return connection.getresponse().status


@pytest.mark.parametrize(
    "begun", [b"", b"GET / HTTP/1.1\r\nhost: localhost\r\nx: ", b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"]
)
def test_slow_clients_and_views_that_wait_do_not_stop_a_probe(port: int, begun: bytes) -> None:
    with contextlib.ExitStack() as opened:
        for _ in range(40):
            client = opened.enter_context(socket.create_connection(("127.0.0.1", port)))
            client.sendall(begun)
        assert status_of(port, "/healthz") == 200
        assert status_of(port, "/style.css") == 200


def test_a_form_is_read_to_its_limit_only(port: int) -> None:
    assert status_of(port, "/dead/change", "POST", b"token=a") == 403
    assert status_of(port, "/dead/change", "POST", b"token=" + b"a" * 65_536) == 413


def test_headers_without_an_end_are_cut(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client, contextlib.suppress(ConnectionError):
        client.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n")
        for _ in range(1_000):
            client.sendall(b"a: " + b"b" * 4_091 + b"\r\n")
        assert client.recv(65_536).startswith(b"HTTP/1.1 431 ")
