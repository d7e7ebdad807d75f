"""`make pictures`: takes the pictures of README.md again, from the running product.

`docs/images/status.png` is the status page of a poller at work; only the last hour on its charts is made up.
`docs/images/batch.png` is the progress of `batch run` in a terminal. Needs Chromium (`make servers`) and a minute.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import ioctl
from io import StringIO
from pathlib import Path

import redis
from rich.console import Console
from rich.text import Text

from handlers.demo.servers import free_port
from handlers.demo.stack import Stack, StackOptions
from handlers.redis_store.admin.status_board import StatusBoard
from handlers.redis_store.connection import RedisOptions, connect
from handlers.status.collect import POST_SECONDS
from tests.servers.chromium import Page, running_chromium
from tests.servers.process import running_process
from tests.waiting import elapse, wait_until

IMAGES = Path(__file__).parents[1] / "docs" / "images"
PROGRAM = str(Path(sys.executable).parent / "async-processor")
COLUMNS = 100
BATCH_LINES = 3_000
BATCH_LINE = {"method": "POST", "url": "/v1/completions", "body": {"model": "m", "prompt": "Hi"}}
CONFIG = """
queues:
  - {queue_name: summaries, labels: {tier: batch}}
  - queue_name: evaluations
    labels: {tier: async, classification: reserved}
    gate_type: redis
    gate_params: {address: "127.0.0.1:PORT", budget_key: gate-of-evaluations}
"""


@contextmanager
def running_stack(folder: Path, seconds: float, *faults: str) -> Iterator[Stack]:
    """A poller with 16 slots, and a gateway that takes `seconds` for each request."""
    port, config = free_port(), folder / "config.yaml"
    config.write_text(CONFIG.replace("PORT", str(port)))
    options = StackOptions(
        redis_port=port,
        has_pubsub=False,
        gateway_arguments=("--time-to-first-token", str(seconds), *(f"--fault={fault}" for fault in faults)),
        variables={"CONFIG_FILE": str(config), "WORKERS": "16", "SHUTDOWN_GRACE_SECONDS": "1"},
    )
    with Stack(options) as stack:
        yield stack


async def take_status(page: Page, folder: Path) -> None:
    """The first page of `async-processor status`."""
    with (
        running_stack(folder, 0.5, "503=0.03") as stack,
        redis.Redis.from_url(stack.redis_url, socket_timeout=60) as store,
    ):
        store.set("gate-of-evaluations", "0")
        elapse(2 * POST_SECONDS, "the gate reads its key")
        await post_last_hour(stack.redis_url)
        for name, count in (("summaries", 1_400), ("evaluations", 140)):
            store.zadd(name, dict(members(count)))
        store.zadd("summaries", {"no request at all": time.time()})  # becomes a dead letter
        elapse(3 * POST_SECONDS, "the poller works and reports")
        port = free_port()
        variables = {"REDIS_URL": stack.redis_url, "CONFIG_FILE": str(folder / "config.yaml")}
        command = [PROGRAM, "status", "--port", str(port)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with running_process(command, env={**os.environ, **variables}, **quiet):
            wait_until(lambda: is_up(port), "the status page")
            await page.resize(1_200, 1_000)
            await page.open(f"http://127.0.0.1:{port}/")
            await page.shoot(IMAGES / "status.png")


def is_up(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=60) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def members(count: int) -> Iterator[tuple[str, float]]:
    """Requests of three tenants, as a client queues them."""
    deadline = int(time.time()) + 86_400
    for number in range(count):
        body = {
            "id": f"request-{number}",
            "created": int(time.time()),
            "deadline": deadline,
            "payload": {"model": "m", "prompt": "Hi"},
            "metadata": {"userid": ("red", "green", "blue")[number % 3]},
        }
        yield json.dumps(body), deadline


async def post_last_hour(redis_url: str) -> None:
    """Counts of the last hour as a poller posts them: some waves, and five minutes in which the gateway was down."""
    store = connect(RedisOptions(url=redis_url))
    board = StatusBoard(store, "an-earlier-poller")
    now = int(time.time() // 60)
    for ago in range(1, 60):
        count = int(3_000 + 600 * math.sin(ago / 3) + 200 * math.sin(ago * 1.7))
        is_down = 33 <= ago <= 37
        counts = {"answered": count // (12 if is_down else 1), "retried": count // (4 if is_down else 100)}
        counts |= {
            "failed": count // 300,
            "latency3": counts["answered"] // 2,
            "latency4": counts["answered"] // 3,
        }
        await board.post(b"{}", now - ago, counts, [])
    await board.leave()
    await store.aclose()


async def take_batch(page: Page, folder: Path) -> None:
    """The progress line of `async-processor batch run`, at about 70 %."""
    lines = [
        json.dumps(
            {
                "custom_id": str(n),
                "method": "POST",
                "url": "/v1/completions",
                "body": {"model": "m", "prompt": "Hi"},
            }
        )
        for n in range(BATCH_LINES)
    ]
    (folder / "requests.jsonl").write_text("\n".join(lines) + "\n")
    with running_stack(folder, 0.05, "503=0.02") as stack:
        shown = progress_of(
            [PROGRAM, "batch", "run", "requests.jsonl", "--out", "results.jsonl", "--queue", "summaries"],
            {"REDIS_URL": stack.redis_url},
            folder,
        )
    console = Console(file=StringIO(), record=True, width=COLUMNS, force_terminal=True, color_system="truecolor")
    console.print("$ async-processor batch run requests.jsonl --out results.jsonl")
    console.print(Text.from_ansi(shown), end="")
    svg = re.sub(r"@font-face \{.*?\}", "", console.export_svg(title="a batch in progress"), flags=re.DOTALL)
    picture = folder / "batch.html"
    picture.write_text(f"<!doctype html><meta charset=utf-8><style>body{{margin:0}}svg{{width:100%}}</style>{svg}")
    await page.resize(1_000, 400)
    await page.open(picture.as_uri())
    height = await page.run("Math.ceil(document.querySelector('svg').getBoundingClientRect().height)")
    await page.resize(1_000, height)
    await page.shoot(IMAGES / "batch.png")


def progress_of(command: list[str], variables: dict[str, str], folder: Path) -> str:
    """The last line that the command shows in a terminal before it passes 70 %."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    environment = {
        **os.environ,
        **variables,
        "TERM": "xterm-256color",
        "COLORTERM": "truecolor",
        "COLUMNS": str(COLUMNS),
    }
    with running_process(command, cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs):
        text = ""
        while not (found := re.findall(r"[^\r\n]*?\b7\d%[^\r\n]*", text)):
            text += os.read(ours, 65_536).decode()
    return re.sub(r"\x1b\[[0-9]*[A-GJKhl]|\x1b\[\?[0-9]+[hl]", "", found[-1])


async def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    async with running_chromium() as page:
        for take in (take_status, take_batch):
            with tempfile.TemporaryDirectory(prefix="pictures-") as folder:
                await take(page, Path(folder))
    for path in sorted(IMAGES.glob("*.png")):
        print(path, f"{path.stat().st_size:,} bytes")


if __name__ == "__main__":
    asyncio.run(main())
