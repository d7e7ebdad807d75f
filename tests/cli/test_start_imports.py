"""Each command imports only what its start needs, since imports are most of the start time."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from redis import Redis

from handlers.demo.servers import free_port
from handlers.demo.valkey import Valkey
from tests.servers.forked import LONG_REDIS_TIMEOUT
from tests.servers.process import running_process
from tests.waiting import wait_until

COMMAND = str(Path(sys.executable).parent / "async-processor")

TERMINAL = {"rich", "pygments"}
"""Packages that draw in terminals; httpx imports both for a command line that we do not use."""
TRACING = {"opentelemetry.sdk.trace", "opentelemetry.sdk.metrics._internal", "opentelemetry.exporter"}
GOOGLE = {"google.pubsub_v1", "google.api_core", "google.auth", "grpc"}
DOORS = {"starlette", "cloudevents", "functions_framework", "jwt"}
PAGES = {"uvicorn", "flask", "jinja2", "gunicorn"}
NEVER = TERMINAL | TRACING | GOOGLE | {"yaml"}

UNNEEDED = {
    "poll": NEVER | DOORS | PAGES | {"handlers.gates.registry", "handlers.redis_store.cluster.queue"},
    "serve": NEVER | {"gunicorn", "redis", "jwt", "prometheus_client", "handlers.gates.registry"},
    "status": NEVER | {"gunicorn", "functions_framework", "jwt"},
    "webhook": NEVER | DOORS | PAGES | {"prometheus_client", "handlers.wiring"},
    "submit": NEVER | DOORS | PAGES | {"httpx", "prometheus_client", "handlers.wiring", "handlers.settings"},
}
"""Modules that a command does not import before it works, by command."""


def started(command: str, folder: Path) -> tuple[list[str], str]:
    """The arguments of a command, and its output once it has started."""
    secret = folder / "secret"
    secret.write_text("whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    receiver = ["http://127.0.0.1:9/", "--secret-file", str(secret), "--allow-private", "--for", "1s"]
    return {
        "poll": ([], '"event":"polling"'),
        "serve": (["--target", "dispatch", "--port", "0"], '"event":"ready"'),
        "status": (["--port", str(free_port())], "status page on"),
        "webhook": (receiver, "0 delivered"),
        "submit": (["--model", "m", "--prompt", "p", "--id", "the-id"], "the-id"),
    }[command]


def variables_of(url: str) -> dict[str, str]:
    """The environment of a command beside the Redis server at `url`."""
    return {
        "PATH": os.environ["PATH"],
        "REDIS_URL": url,
        **LONG_REDIS_TIMEOUT,
        "IGW_BASE_URL": "http://127.0.0.1:9",
        "METRICS_PORT": "0",
        "HOST": "127.0.0.1",
        "PYTHONUNBUFFERED": "1",
    }


def output_until(sign: str, command: str, arguments: list[str], url: str, folder: Path) -> str:
    """What a command prints before `sign`, with a line for each module that it imports."""
    variables = {**variables_of(url), "PYTHONPROFILEIMPORTTIME": "1"}
    log = folder / "output"
    line = [COMMAND, command, *arguments]
    with (
        log.open("wb") as output,
        running_process(line, env=variables, stdout=output, stderr=subprocess.STDOUT) as process,
    ):
        wait_until(lambda: sign in log.read_text() or process.poll() is not None, f"{sign!r} of {command}")
    text, is_found, _ = log.read_text().partition(sign)
    assert is_found, text
    return text


def unneeded(output: str, heavy: Iterable[str]) -> set[str]:
    """The modules among the imported ones that are `heavy`, or within a heavy package."""
    modules = re.findall(r"^import time:.*\|\s*(\S+)$", output, re.M)
    assert "handlers.cli" in modules
    return {name for name in modules for one in heavy if name == one or name.startswith(f"{one}.")}


@pytest.mark.parametrize("command", UNNEEDED)
def test_a_command_starts_without_the_modules_that_it_does_not_need(
    command: str, valkey: Valkey, tmp_path: Path
) -> None:
    with Redis.from_url(valkey.url, socket_timeout=60) as redis:
        redis.flushall()  # a result of an earlier test would keep the webhook's command busy
    arguments, sign = started(command, tmp_path)
    output = output_until(sign, command, arguments, valkey.url, tmp_path)
    assert unneeded(output, UNNEEDED[command]) == set()


@pytest.mark.parametrize("command", ["poll", "serve"])
def test_garbage_is_collected_once_a_command_has_started(command: str, valkey: Valkey, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import gc, signal\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('collects', gc.isenabled(), gc.get_freeze_count() > 0))\n"
    )
    arguments, sign = started(command, tmp_path)
    variables = {**variables_of(valkey.url), "PYTHONPATH": str(tmp_path)}
    line = [COMMAND, command, *arguments]
    log = tmp_path / "output"
    with (
        log.open("wb") as output,
        running_process(line, env=variables, stdout=output, stderr=subprocess.STDOUT) as process,
    ):
        wait_until(lambda: sign in log.read_text(), f"{sign!r} of {command}")
        process.send_signal(signal.SIGUSR1)
        wait_until(lambda: "collects" in log.read_text(), "the answer to the signal")
    assert "collects True True" in log.read_text()


@pytest.mark.timeout(600)
def test_a_poller_loads_the_server_of_its_pages_after_its_first_claim(tmp_path: Path) -> None:
    """The claim fails, which is logged; the pages are served nevertheless.

    A poller waits only a moment for that claim, so on a busy machine another start may be needed.
    """

    def is_claim_first() -> bool:
        output = output_until("uvicorn.config\n", "poll", [], f"redis://127.0.0.1:{free_port()}", tmp_path)
        return "work paused" in output

    wait_until(is_claim_first, "a poller that claims first", timeout_seconds=240)
