"""A real RabbitMQ for one test, with its own port mapper, in a temporary folder."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pika
import pika.exceptions

from handlers.demo.servers import free_port
from tests.servers.presence import not_found
from tests.servers.process import running_process
from tests.waiting import wait_until

# Debian's own /usr/sbin/rabbitmq-server changes the user; this is what it runs.
_SERVER: Final = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
_START_SECONDS: Final = 240  # on a busy machine


@contextlib.contextmanager
def running_rabbitmq() -> Iterator[pika.ConnectionParameters]:
    """The connection parameters of a new broker."""
    epmd = shutil.which("epmd")
    if not _SERVER.exists() or epmd is None:
        not_found("rabbitmq-server")
    port, distribution_port, epmd_port = free_port(), free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="rabbitmq-", ignore_cleanup_errors=True) as folder:
        variables = {
            "PATH": "/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": folder,
            "RABBITMQ_BASE": folder,
            "RABBITMQ_MNESIA_BASE": f"{folder}/db",
            "RABBITMQ_LOG_BASE": f"{folder}/log",
            "RABBITMQ_PID_FILE": f"{folder}/pid",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/plugins",
            "RABBITMQ_CONFIG_FILE": f"{folder}/none",
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_NODENAME": f"test{port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_DIST_PORT": str(distribution_port),
            # One scheduler that does not spin: two thirds of the CPU, and a faster start.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none",
            "ERL_EPMD_PORT": str(epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }
        quiet = subprocess.DEVNULL
        # In the foreground and ours, else the server starts one that outlives it.
        with (
            running_process([epmd], env=variables, stdout=quiet, stderr=quiet),
            running_process([str(_SERVER)], env=variables, stdout=quiet, stderr=quiet),
        ):
            parameters = pika.ConnectionParameters("127.0.0.1", port, heartbeat=0)
            wait_until(lambda: _answers(parameters), "RabbitMQ", timeout_seconds=_START_SECONDS)
            yield parameters


def _answers(parameters: pika.ConnectionParameters) -> bool:
    try:
        pika.BlockingConnection(parameters).close()
    except (pika.exceptions.AMQPError, OSError):
        return False
    return True
