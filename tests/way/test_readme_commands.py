"""The commands of README and guides run as they are written, on a real stack."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from handlers.cli.demo import variables_of
from handlers.demo.stack import Stack
from tests.servers.forked import LONG_REDIS_TIMEOUT
from tests.servers.presence import not_found
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
Run = Callable[[str], str]


def commands(beginning: str, *, file: str = "README.md") -> list[str]:
    """The shell lines that begin like this, without their comments."""
    blocks = re.findall(r"^```(?:sh|bash)\n(.*?)^```", (ROOT / file).read_text(), re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith(beginning)]
    return [re.sub(r"\s{2,}#.*$", "", line) for line in lines]


@pytest.fixture
def run(pubsub_stack: Stack, tmp_path: Path) -> Run:
    """Runs one line in a shell whose redis-cli, gcloud and async-processor use this stack."""
    cli = shutil.which("redis-cli")
    if cli is None:
        not_found("redis-cli")
    wrapper = tmp_path / "redis-cli"
    wrapper.write_text(f'#!/bin/sh\nexec {cli} -u {pubsub_stack.redis_url} "$@"\n')
    wrapper.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        **variables_of(pubsub_stack),  # all that `make dev` sets, and no other setting but a longer wait
        **LONG_REDIS_TIMEOUT,
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
    }

    def run_line(line: str) -> str:
        done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout

    return run_line


def test_the_readmes_redis_commands_queue_a_request_and_read_its_result(run: Run) -> None:
    zadd, rpop = commands("redis-cli")

    assert run(zadd).strip() == "1"
    result = wait_until(lambda: run(rpop).strip(), what="a result")

    assert '"id":"testmsg"' in result
    assert '"status_code":200' in result


@pytest.mark.parametrize("file", ["README.md", "knative/README.md"])
def test_the_guides_gcloud_commands_publish_a_request_and_pull_its_result(run: Run, file: str) -> None:
    if shutil.which("gcloud") is None:
        not_found("gcloud")
    (publish,) = commands("gcloud pubsub topics publish", file=file)
    (pull,) = commands("gcloud pubsub subscriptions pull", file=file)

    run(publish)
    result = wait_until(lambda: run(pull).strip(), what="a result")

    assert "testmsg" in result


def test_the_readmes_submit_waits_for_its_answer(run: Run) -> None:
    (submit,) = commands("async-processor submit")

    assert "choices" in run(submit)


def test_check_finds_the_stack_sound(run: Run) -> None:
    assert "FAULT" not in run("async-processor check")


def test_setting_up_again_creates_nothing(run: Run) -> None:
    setup = "async-processor pubsub setup --project setup-project --push-endpoint http://127.0.0.1:9/push"

    assert "async-proc-requests" in run(setup)
    assert "0 created, 0 to correct" in run(setup)
