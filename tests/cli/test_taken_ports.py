"""Commands on a port that another process listens on."""

from __future__ import annotations

import os
import socket

import pytest
from click.testing import CliRunner

from handlers.cli import main

COMMANDS = {
    "poll": ("METRICS_PORT", ["poll"]),
    "serve": ("PORT", ["serve", "--target", "dispatch"]),
    "status": ("--port", ["status", "--port", "{port}"]),
    "dev, Redis": ("--redis-port", ["dev", "--redis-port", "{port}"]),
    "dev, gateway": ("--gateway-port", ["dev", "--gateway-port", "{port}"]),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_taken_port_is_one_line_that_names_the_setting(command: str) -> None:
    setting, arguments = COMMANDS[command]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        done = CliRunner().invoke(
            main,
            [argument.format(port=port) for argument in arguments],
            env={
                **dict.fromkeys(set(os.environ) - {"PATH", "HOME"}),
                "HOST": "127.0.0.1",
                "REDIS_URL": "redis://127.0.0.1:1",
                "IGW_BASE_URL": "http://127.0.0.1:9",
                "METRICS_PORT": port,
                "PORT": port,
            },
        )
    assert done.exit_code == 2
    assert done.stderr == f"error: {setting}: expected a free port, got {port}, which is in use\n"
