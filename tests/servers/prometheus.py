"""A real Prometheus that scrapes given addresses every second."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from handlers.demo.servers import free_port
from tests.servers.presence import not_found
from tests.servers.process import running_process
from tests.waiting import wait_until

SCRAPE_INTERVAL_MS = 1_000
"""Also the time limit of a scrape."""
EVALUATION_INTERVAL_MS = 200

_CONFIG = """\
global:
  evaluation_interval: {evaluation_ms}ms
  scrape_interval: {interval_ms}ms
  scrape_timeout: {interval_ms}ms
rule_files: {rules}
scrape_configs:
{jobs}"""

_JOB = """\
  - job_name: scraped-{number}
    metrics_path: {path}
    authorization: {{credentials: "{token}"}}
    static_configs:
      - targets: ["{address}"]
"""


@contextlib.contextmanager
def running_prometheus(
    addresses: Sequence[str], *, path: str = "/metrics", token: str = "none", rules: Sequence[Path] = ()
) -> Iterator[str]:
    """The base URL of a Prometheus that scrapes `addresses` (`host:port`) and is ready for queries.

    It sends `token` to all of them, and evaluates the rule files `rules`.
    """
    program = shutil.which("prometheus")
    if program is None:
        not_found("prometheus")
    with tempfile.TemporaryDirectory(prefix="prometheus-") as folder:
        url = f"http://127.0.0.1:{free_port()}"
        jobs = "".join(
            _JOB.format(number=number, address=address, path=path, token=token)
            for number, address in enumerate(addresses)
        )
        config = Path(folder, "prometheus.yml")
        config.write_text(
            _CONFIG.format(
                evaluation_ms=EVALUATION_INTERVAL_MS,
                interval_ms=SCRAPE_INTERVAL_MS,
                jobs=jobs,
                rules=json.dumps([str(path) for path in rules]),
            )
        )
        log = Path(folder, "log")
        command = [
            program,
            f"--config.file={config}",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address={url.removeprefix('http://')}",
            "--query.lookback-delta=30s",  # a dropped series disappears at once
            "--scrape.discovery-reload-interval=100ms",  # else it scrapes nothing for its first five seconds
            "--log.level=warn",
        ]
        with (
            log.open("wb") as output,
            running_process(command, stdout=output, stderr=subprocess.STDOUT) as process,
        ):
            wait_until(lambda: process.poll() is not None or _is_ready(url), "prometheus to be ready for queries")
            assert process.poll() is None, log.read_text()
            yield url


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/-/ready", timeout=60) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
