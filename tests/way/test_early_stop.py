"""SIGTERM and Ctrl-C end every command at any moment of its start, as PID 1 too, and nothing stays claimed."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import pytest
from redis import Redis

from handlers.cli import SERVICES
from handlers.cli.main import COMMANDS
from handlers.demo.servers import free_port
from handlers.demo.valkey import Valkey
from tests.servers.forked import LONG_REDIS_TIMEOUT
from tests.servers.presence import program_path
from tests.waiting import elapse, wait_until

GATEWAY = "handlers.demo.gateway"
COMMAND = str(Path(sys.executable).parent / "async-processor")
MOMENTS = 20
FEW_MOMENTS = 5
LONGEST_START_SECONDS = 1.0
REQUEST = '{"id":"one","payload":{},"deadline":1999999999}'

pytestmark = pytest.mark.timeout(600)


def arguments(command: str, folder: Path) -> list[str]:
    match command:
        case "poll":
            return []
        case "serve":
            return ["--target", "dispatch", "--port", "0"]
        case "status":
            return ["--port", str(free_port())]
        case "webhook":
            secret = folder / "secret"
            secret.write_text("whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
            return ["http://127.0.0.1:9/", "--secret-file", str(secret), "--allow-private"]
    raise AssertionError(f"{command}: name the arguments that it starts with")


def catches_sigterm(process_id: int) -> bool:
    """Whether the process has a handler for SIGTERM, as the kernel reports it."""
    try:
        status = Path(f"/proc/{process_id}/status").read_text()
    except FileNotFoundError:
        return False
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)", status, re.M)
    return bool(caught and int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def pid_of_init(unshare: subprocess.Popen[bytes]) -> int:
    """The process that is PID 1 of the namespace, by its number here.

    0 while it does not run our command, -1 once it has ended.
    """
    if unshare.poll() is not None:
        return -1
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ends at this moment
        children = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children").read_text().split()
        if children and b"--map-root-user" not in Path(f"/proc/{children[0]}/cmdline").read_bytes():
            return int(children[0])
    return 0


def stopped_after(seconds: float, command: list[str], url: str, number: int = signal.SIGTERM) -> int:
    """The exit code of a command that gets a signal that long after it installed its first handlers."""
    namespace = [program_path("unshare"), "--pid", "--fork", "--kill-child", "--user", "--map-root-user"]
    variables = {
        "PATH": os.environ["PATH"],
        "REDIS_URL": url,
        "METRICS_PORT": "0",
        "IGW_BASE_URL": "http://127.0.0.1:9",
        **LONG_REDIS_TIMEOUT,
    }
    with subprocess.Popen(
        [*namespace, *command], env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            init = wait_until(lambda: pid_of_init(process), "the process in its namespace")
            # On a busy machine a short command may have done its work by now.
            wait_until(lambda: process.poll() is not None or catches_sigterm(init), "its handler of SIGTERM")
            elapse(seconds, "the start continues until this moment")
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(init, number)
            return process.wait(60)
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", SERVICES)
def test_a_signal_at_any_moment_of_the_start_ends_a_service(
    command: str, number: int, valkey: Valkey, tmp_path: Path
) -> None:
    count = MOMENTS if number == signal.SIGTERM else FEW_MOMENTS
    with Redis.from_url(valkey.url, socket_timeout=60) as redis:
        redis.flushall()
        redis.zadd("request-sortedset", {REQUEST: 1999999999})
        # Each start has its own port: one that is still stopping may hold the port of another.
        lines = [[COMMAND, command, *arguments(command, tmp_path)] for _ in range(count)]
        assert codes(lines, valkey.url, number) == [0] * count
        answered = redis.llen("result-list")
        assert redis.hlen("request-sortedset:claimed") == 0
        assert redis.zcard("request-sortedset") + redis.zcard("retry-sortedset") + answered == 1


def test_a_signal_at_any_moment_of_the_start_ends_the_simulated_gateway() -> None:
    lines = [[sys.executable, "-m", GATEWAY]] * FEW_MOMENTS
    for number in (signal.SIGTERM, signal.SIGINT):
        assert codes(lines, "", number) == [0] * FEW_MOMENTS


def codes(lines: list[list[str]], url: str, number: int) -> list[int]:
    """The exit codes of these commands; each gets the signal in another part of a start, and no run repeats another."""
    moments = [LONGEST_START_SECONDS * (n + random.random()) / len(lines) for n in range(len(lines))]
    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(stopped_after, moments, lines, repeat(url), repeat(number)))


ENDLESS = {
    "batch": ["run", "requests.jsonl", "--out", "out.jsonl"],
    "results": [],
    "submit": ["--prompt", "Hi", "--model", "m", "--deadline", "1h", "--wait"],
    "demo": ["--no-pubsub"],
    "dev": ["--no-pubsub"],
}
"""Commands that run for longer than a start, with arguments that make them so."""
SHORT = {
    "top": [],
    "where": ["one"],
    "cancel": ["one"],
    "dead": ["list"],
    "check": [],
    "pubsub": ["setup", "--project-id", "p", "--push-endpoint", "https://one.example/", "--dry-run"],
}
"""Commands that may have ended before their signal."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", [*ENDLESS, *SHORT])
def test_a_signal_at_any_moment_of_the_start_ends_a_command(
    command: str, number: int, valkey: Valkey, tmp_path: Path
) -> None:
    with Redis.from_url(valkey.url, socket_timeout=60) as redis:
        redis.flushall()
    body = '{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": "m", "prompt": "Hi"}}'
    lines = []
    for n in range(FEW_MOMENTS):
        folder = tmp_path / str(n)
        folder.mkdir()
        (folder / "requests.jsonl").write_text(body)
        given = [str(folder / one) if one.endswith(".jsonl") else one for one in (ENDLESS | SHORT)[command]]
        lines.append([COMMAND, command, *given])
    found = set(codes(lines, valkey.url, number))
    ended = {0} if command == "dev" else {128 + number}
    assert found <= ended | ({0, 1, 2, 4} if command in SHORT else set())


def test_every_command_is_stopped_in_one_of_these_tests() -> None:
    assert {*SERVICES, *ENDLESS, *SHORT} == COMMANDS.keys()


START = {
    **dict.fromkeys([*COMMANDS, "--help"], "import handlers.cli"),
    GATEWAY: f"import runpy; runpy.run_module({GATEWAY!r}, run_name='__main__')",
}


@pytest.mark.parametrize("command", START)
def test_the_handler_is_installed_before_anything_else_is_imported(command: str) -> None:
    script = f"""
import signal, sys
sys.argv = ["async-processor", {command!r}]
sys.modules["click"] = None
try:
    {START[command]}
except ImportError:
    heavy = {{"msgspec", "redis", "uvicorn", "httpx"}} & sys.modules.keys()
    ours = signal.getsignal(signal.SIGINT)
    print(ours is signal.getsignal(signal.SIGTERM) is not signal.default_int_handler and not heavy)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
