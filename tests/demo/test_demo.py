"""The demo and the development stack as a newcomer starts them: real processes, output in a pipe."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from handlers.contract.result import Result
from handlers.demo.servers import Child
from handlers.demo.view import DemoTally, WitnessLine, missing_lines, read_witness, stages
from tests.servers.forked import LONG_REDIS_TIMEOUT

COMMAND = str(Path(sys.executable).parent / "async-processor")


def run_demo(*flags: str, wanted: int) -> str:
    command = [COMMAND, "demo", "--no-pubsub", "--requests", "20", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == wanted, done.stdout + done.stderr
    return done.stdout


def test_a_demo_in_a_pipe_ignores_settings_and_shows_healthy_latency_then_progress_then_the_outcome(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    others = {
        "REQUEST_QUEUE_NAME": "other",
        "CONFIG_FILE": "/nowhere.yaml",
        "WORKERS": "many",
        "REDIS_URL": "redis://x",
    }
    for name, value in others.items():
        monkeypatch.setenv(name, value)
    output = run_demo(wanted=0)
    wanted = (
        "Latency of a healthy run",
        "queue → gateway",
        "22 requests through Redis (2 of them malformed)",
        "results · Redis queued",
        "What became of the requests",
        "no result within 90 s",
        "2 of the requests are malformed on purpose",
        "Dead letters: 1.",
        "retried until no retry fitted before the deadline",
        "Passed",
        "Next: `async-processor dev`",
    )
    at = 0
    for text in wanted:
        at = output.find(text, at)
        assert at >= 0, f"no {text!r} after the one before it: {output}"


def test_a_terminated_demo_stops_all_its_processes() -> None:
    endless = [COMMAND, "demo", "--no-pubsub", "--requests", "20000"]
    with subprocess.Popen(endless, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as demo:
        assert demo.stdout is not None
        assert any("Healthy" in line for line in demo.stdout), "the stack did not start"
        children = psutil.Process(demo.pid).children(recursive=True)
        demo.terminate()
        demo.communicate(timeout=60)
    assert demo.returncode == 143
    assert len(children) >= 4, "Valkey, gateway, handler and poller"
    assert psutil.wait_procs(children, timeout=60)[1] == []


WITHOUT_RESULT = re.compile(
    r"^  Redis (\S+): (never reached the gateway|\d+ attempts? at the gateway \(.*\), the last ended \d+ s ago)$", re.M
)


def test_a_demo_that_runs_out_of_time_names_each_id_and_keeps_the_logs() -> None:
    output = run_demo("--timeout", "4", wanted=1)  # less than the 6 s after which one of them has its result
    assert "without a result within 4 s" in output
    folder = Path(output.split("logs of the processes: ")[1].split()[0])
    with (folder / "gateway-requests.jsonl").open("rb") as lines:
        witnessed = read_witness(lines)
    named = {found[1]: found[2] for found in WITHOUT_RESULT.finditer(output)}
    # A slow machine may not get further than the healthy ones, or have more unanswered ones than are named.
    is_slow = any("healthy" in name for name in named) or "… and " in output
    assert "redis-00011" in named or (named and is_slow), output
    for name, attempts in named.items():
        statuses = [str(line.status or "connection broken") for line in witnessed if line.key == name]
        found = re.match(r"(\d+) attempts? at the gateway \((.*)\), the last ended", attempts)
        answers = found[2].split(", ") if found else []
        assert statuses[: len(answers)] == answers, "more may have ended since"
        assert found is None or int(found[1]) == len(answers)
        assert name != "redis-00011" or set(answers) <= {"503"}
    assert (folder / "poller.log").is_file()


def test_an_unsent_request_differs_from_a_refused_one() -> None:
    tally = DemoTally(sent_at={"a": 1.0, "b": 1.0, "c": 1.0}, results={"c": Result(id="c", status_code=200)})
    stage = stages(tally, [WitnessLine("b", 2.0, None, 3.0, 503), WitnessLine("b", 4.0, None, 5.0, 0)])
    assert missing_lines({"Redis": (tally, stage)}, now=65.0) == [
        "Redis a: never reached the gateway",
        "Redis b: 2 attempts at the gateway (503, connection broken), the last ended 60 s ago",
    ]


@pytest.fixture(scope="module")
def shown_by_dev() -> Iterator[str]:
    """What a running `dev` prints."""
    with Child("dev", [COMMAND, "dev", "--no-pubsub"]) as dev:
        yield dev.wait_for(lambda text: text if "Ctrl-C stops everything" in text else None)


def gateway_of(output: str) -> str:
    found = re.search(r"IGW_BASE_URL=(\S+)", output)
    assert found is not None
    return found[1]


def state_of_gateway(output: str) -> dict[str, Any]:
    state: dict[str, Any] = httpx.get(f"{gateway_of(output)}/simulate/state", timeout=60).json()
    return state


@pytest.mark.xdist_group("dev")
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/embeddings"])
def test_the_export_lines_of_dev_make_the_commands_of_the_readme_work(shown_by_dev: str, path: str) -> None:
    exports = "\n".join(line for line in shown_by_dev.splitlines() if line.startswith("  export "))
    submit = f"async-processor submit - --endpoint {path} --deadline 10m --wait"
    script = f"""{exports}\n{submit} <<< '{{"model": "m", "prompt": "Hi", "input": "Hi"}}'"""
    environment = {"PATH": "/usr/bin:/bin", "HOME": os.environ.get("HOME", "/"), **LONG_REDIS_TIMEOUT}
    before = state_of_gateway(shown_by_dev)["statuses"].get("200", 0)
    done = subprocess.run(["/bin/bash", "-ec", script], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert state_of_gateway(shown_by_dev)["statuses"] == {"200": before + 1}
    assert '"object":"' in done.stdout


CONFIG = """
queues:
  - {queue_name: night, result_queue_name: night-results}
  - {queue_name: day}
"""


def test_dev_names_its_configuration_and_its_lines_use_a_queue_of_it(tmp_path: Path) -> None:
    (tmp_path / "queues.yaml").write_text(CONFIG)
    command = ["/bin/sh", "-c", f"cd {tmp_path} && CONFIG_FILE=queues.yaml exec {COMMAND} dev --no-pubsub"]
    with Child("dev", command) as dev:
        output = dev.wait_for(lambda text: text if "Ctrl-C stops everything" in text else None)
        assert f"CONFIG_FILE              {tmp_path}/queues.yaml: queues night, day\n" in output
        exports = [line for line in output.splitlines() if line.startswith("  export ")]
        assert "  export REQUEST_QUEUE_NAME=night" in exports
        assert "  export RESULT_QUEUE_NAME=night-results" in exports
        assert f"  export CONFIG_FILE={tmp_path}/queues.yaml" in exports
        assert "ZADD night " in output
        assert "RPOP night-results" in output
        script = "\n".join(
            [*exports, "async-processor submit --prompt hi --model m --wait", "async-processor top --once"]
        )
        variables = {**os.environ, **LONG_REDIS_TIMEOUT}
        done = subprocess.run(["/bin/bash", "-ec", script], capture_output=True, text=True, check=False, env=variables)
        assert done.returncode == 0, done.stderr
        assert '"object":"' in done.stdout
        assert "night" in done.stdout
        assert "day" in done.stdout


def test_dev_refuses_an_invalid_configuration_before_it_starts_anything(tmp_path: Path) -> None:
    for file, expected in (("nowhere.yaml", "expected a readable UTF-8 file"), ("bad.yaml", "got 'often'")):
        (tmp_path / "bad.yaml").write_text("pools: [{id: a, shared: often}]")
        done = subprocess.run(
            [COMMAND, "dev", "--no-pubsub"],
            env={**os.environ, "CONFIG_FILE": str(tmp_path / file)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert expected in done.stderr


@pytest.mark.xdist_group("dev")
def test_the_curl_lines_of_dev_change_its_gateway_and_change_it_back(shown_by_dev: str) -> None:
    before = state_of_gateway(shown_by_dev)
    changes = re.findall(r"curl -d '(.*?)' \$IGW_BASE_URL(\S+)", shown_by_dev)
    url = gateway_of(shown_by_dev)
    states = [httpx.post(f"{url}{path}", content=body, timeout=60) for body, path in changes]
    assert [answer.status_code for answer in states] == [200] * 5
    slow, full, failing, *_, after = [answer.json() for answer in states]
    assert slow["engine"]["time_to_first_token"] == 5
    assert full["engine"]["capacity"] == 1
    assert failing["faults"] == {"503": 0.5, "reset": 0.1}
    assert after == before
