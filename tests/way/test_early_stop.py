"""A SIGTERM during the start ends every service with 0, as PID 1 too, and nothing stays claimed."""

from __future__ import annotations

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
from handlers.demo.servers import free_port
from handlers.demo.valkey import Valkey
from tests.servers.presence import program_path
from tests.waiting import elapse, wait_until

COMMAND = str(Path(sys.executable).parent / "async-processor")
MOMENTS = 30
LONGEST_START_SECONDS = 1.0
REQUEST = '{"id":"one","payload":{},"deadline":1999999999}'

pytestmark = pytest.mark.timeout(300)


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
    """The process that is PID 1 of the namespace, by its number here; 0 while it does not run our command."""
    children = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children").read_text().split()
    if not children or b"async-processor" not in Path(f"/proc/{children[0]}/cmdline").read_bytes():
        return 0
    return int(children[0])


def stopped_after(seconds: float, command: list[str], url: str) -> int:
    """The exit code of a service that gets SIGTERM that long after it installed its first handler."""
    namespace = [program_path("unshare"), "--pid", "--fork", "--kill-child", "--user", "--map-root-user"]
    variables = {"PATH": os.environ["PATH"], "REDIS_URL": url, "METRICS_PORT": "0"}
    with subprocess.Popen(
        [*namespace, *command], env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            init = wait_until(lambda: pid_of_init(process), "the process in its namespace")
            wait_until(lambda: catches_sigterm(init), "its handler of SIGTERM")
            elapse(seconds, "the start continues until this moment")
            os.kill(init, signal.SIGTERM)
            return process.wait(60)
        finally:
            process.kill()


@pytest.mark.parametrize("command", SERVICES)
def test_a_sigterm_at_any_moment_of_the_start_ends_it(command: str, valkey: Valkey, tmp_path: Path) -> None:
    with Redis.from_url(valkey.url) as redis:
        redis.flushall()
        redis.zadd("request-sortedset", {REQUEST: 1999999999})
        # One in each thirtieth of a start, at another place in every run.
        moments = [LONGEST_START_SECONDS * (n + random.random()) / MOMENTS for n in range(MOMENTS)]
        # Each start has its own port: one that is still stopping may hold the port of another.
        lines = [[COMMAND, command, *arguments(command, tmp_path)] for _ in moments]
        with ThreadPoolExecutor(3) as pool:
            codes = list(pool.map(stopped_after, moments, lines, repeat(valkey.url)))
        assert codes == [0] * MOMENTS
        answered = redis.llen("result-list")
        assert redis.hlen("request-sortedset:claimed") == 0
        assert redis.zcard("request-sortedset") + redis.zcard("retry-sortedset") + answered == 1


@pytest.mark.parametrize("command", SERVICES)
def test_the_handler_is_installed_before_anything_else_is_imported(command: str) -> None:
    script = f"""
import signal, sys
sys.argv = ["async-processor", {command!r}]
sys.modules["click"] = None
try:
    import handlers.cli
except ImportError:
    heavy = {{"msgspec", "redis", "uvicorn", "httpx"}} & sys.modules.keys()
    print(signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL and not heavy)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
