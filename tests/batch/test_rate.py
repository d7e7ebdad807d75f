"""A million lines through one batch: its rate and its memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from handlers.client import ClientOptions
from tests.servers.process import running_process

ROOT = Path(__file__).parents[2]
LINES = 1_000_000
MOST_MEMORY_BYTES = 120_000_000


@pytest.mark.bench
@pytest.mark.timeout(900)
def test_a_million_lines_in_flat_memory(valkey_url: str, options: ClientOptions, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_requests(source)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "REDIS_URL": valkey_url}
    run = [sys.executable, "-c", "from handlers.cli import main; main()", "batch", "run"]
    flags = ["--queue", options.queue, "--results", options.results, "--out", str(out)]
    echo = [sys.executable, str(Path(__file__).with_name("echo_poller.py")), valkey_url, options.queue]
    with running_process(echo, env=env):
        began = time.monotonic()
        with subprocess.Popen([*run, str(source), *flags], env=env) as batch:
            most_bytes = peak_memory_bytes(batch)
        seconds = time.monotonic() - began
    print(f"{LINES:,} lines in {seconds:.1f} s: {LINES / seconds:,.0f}/s, {most_bytes / 1e6:.0f} MB at most")
    assert batch.returncode == 0
    with out.open("rb") as file:
        assert len({json.loads(line)["custom_id"] for line in file}) == LINES
    assert most_bytes < MOST_MEMORY_BYTES


def write_requests(path: Path) -> None:
    body = {"model": "m", "prompt": "Say something nice about the weather, please. " * 3, "max_tokens": 64}
    with path.open("w") as file:
        for n in range(LINES):
            line = {"custom_id": f"c{n}", "method": "POST", "url": "/v1/completions", "body": body}
            file.write(json.dumps(line) + "\n")


def peak_memory_bytes(process: subprocess.Popen[bytes]) -> int:
    """The largest resident size seen until the process ends."""
    most_bytes = 0
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            most_bytes = max(most_bytes, watched.memory_info().rss)
            process.wait(0.5)
        except (subprocess.TimeoutExpired, psutil.NoSuchProcess):
            continue
    return most_bytes
