"""`status` on a port that another process listens on."""

from __future__ import annotations

import socket

from click.testing import CliRunner

from handlers.cli import main


def test_a_taken_port_is_one_line_that_names_the_flag() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        done = CliRunner().invoke(
            main, ["status", "--port", str(port)], env={"REDIS_URL": "redis://127.0.0.1:1"}
        )
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert f"--port: expected a free port, got 127.0.0.1:{port}" in done.stderr
