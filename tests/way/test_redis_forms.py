"""Pollers, gates and all commands as processes, on a cluster, Sentinels with TLS, and a socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from handlers.client import Client, RedisAccess
from handlers.client.broker import Submission
from handlers.client.options import ClientOptions
from handlers.demo.servers import Child, free_port
from handlers.redis_store.connection import connect
from handlers.redis_store.submit.submissions import RequestState
from handlers.settings.settings import load_settings
from handlers.wiring.credentials import redis_options
from tests.servers.certificates import self_signed
from tests.servers.forked import COMMAND, LONG_REDIS_TIMEOUT, run_forked
from tests.servers.presence import redis_program
from tests.servers.redis_topologies import Cluster, Sentinels, Server
from tests.waiting import wait_until
from tests.way.poller_fleet import PollerFleet

pytestmark = [pytest.mark.xdist_group("redis-forms"), pytest.mark.timeout(600)]
SECRET = "canary-of-forms"
BUDGET, RATE, QUEUE = "dispatch-gate-budget", "{rates}", "request-sortedset"
LINES = 5


@dataclass
class Form:
    """A Redis, and two pollers that share a pool and use three gates with state in Redis."""

    variables: dict[str, str]
    folder: Path
    fleet: PollerFleet = field(init=False)

    def __post_init__(self) -> None:
        address = self.variables["REDIS_URL"]
        lease = {"address": address, "control_key": RATE, "pool": "pool-a"}
        quota = {"address": address, "limit": 1_000, "mode": "rate-limit"}
        gates = [
            {"gate_type": "redis", "gate_params": {"address": address, "budget_key": BUDGET}},
            {"gate_type": "redis-quota", "gate_params": quota},
            {"gate_type": "redis-leased-rate", "gate_params": lease},
        ]
        pool = {
            "id": "shared",
            "workers": 4,
            "shared": True,
            "gate_type": "composite",
            "gate_params": {"gates": gates},
        }
        queue = {"queue_name": QUEUE, "worker_pool_id": "shared"}
        config = self.folder / "config.json"
        config.write_text(json.dumps({"queues": [queue], "pools": [pool]}))
        self.variables |= {"CONFIG_FILE": str(config), "GATE_REFRESH_SECONDS": "0.1", **LONG_REDIS_TIMEOUT}

    @property
    def access(self) -> RedisAccess:
        """The access options of the commands."""
        return RedisAccess(
            password=self.variables.get("REDIS_PASSWORD", ""),
            ca_file=self.variables.get("REDIS_CA_FILE", ""),
            cert_file=self.variables.get("REDIS_CERT_FILE", ""),
            key_file=self.variables.get("REDIS_KEY_FILE", ""),
            timeout_seconds=60,
        )

    def client(self, **options: Any) -> Client:
        return Client.for_redis(self.variables["REDIS_URL"], ClientOptions(**options), self.access)

    def run(self, *arguments: str, code: int = 0) -> str:
        """The output of a command, which must exit with `code`."""
        return "".join(self._outputs(arguments, code))

    def reported(self, *arguments: str) -> Any:
        """What a command prints as JSON, without the notes and warnings on stderr."""
        return json.loads(self._outputs(arguments)[0])

    def _outputs(self, arguments: Sequence[str], code: int = 0) -> tuple[str, str]:
        done = run_forked([COMMAND, *arguments], {**os.environ, "COLUMNS": "200", **self.variables})
        assert done.returncode == code, done.stdout + done.stderr
        assert SECRET not in done.stdout + done.stderr
        return done.stdout, done.stderr

    def write(self, *words: str) -> None:
        """Send one command to Redis, without the product."""

        async def written() -> None:
            async with contextlib.aclosing(connect(redis_options(load_settings(self.variables)))) as redis:
                await redis.execute_command(*words)

        asyncio.run(written())


@pytest.fixture(scope="module", params=["cluster", "sentinel-tls", "unix"])
def form(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Form]:
    program = redis_program()
    folder = tmp_path_factory.mktemp("form")
    with ExitStack() as parts:
        made = Form(_variables(request.param, program, folder, parts), folder)
        made.write("SET", BUDGET, "1")
        _lease(made)
        made.fleet = parts.enter_context(PollerFleet(made.variables, token_seconds=0.002))
        wait_until(lambda: all(_knows_the_other(poller) for poller in made.fleet.pollers), "a shared pool")
        yield made
        log = "".join(poller.output() for poller in made.fleet.pollers)
        assert SECRET not in log
        assert made.fleet.refused_calls() == []


def _variables(kind: str, program: str, folder: Path, parts: ExitStack) -> dict[str, str]:
    if kind == "cluster":
        return {"REDIS_URL": parts.enter_context(Cluster(program)).url}
    if kind == "unix":
        socket = str(folder / "redis.sock")
        server = Server(program, "--unixsocket", socket, "--appendonly", "yes", "--requirepass", SECRET)
        parts.callback(server.stop)
        return {"REDIS_URL": f"unix://{socket}?db=0", "REDIS_PASSWORD": SECRET}
    pem = self_signed(folder)
    sentinels = parts.enter_context(Sentinels(program, password=SECRET, tls=pem))
    url = sentinels.url().replace(f":{SECRET}@", "")
    files = dict.fromkeys(("REDIS_CA_FILE", "REDIS_CERT_FILE", "REDIS_KEY_FILE"), str(pem))
    return {"REDIS_URL": url, "REDIS_PASSWORD": SECRET, **files}


def _lease(form: Form) -> None:
    fields = {
        "api_version": "llm-d.ai/v1alpha1",
        "pool_id": "pool-a",
        "max_admission_rps": "1000",
        "valid_until_unix_ms": str(int((time.time() + 600) * 1000)),
        "decision_id": "d1",
    }
    form.write("HSET", RATE, *(part for row in fields.items() for part in row))


def _knows_the_other(poller: Child) -> bool:
    return '"pollers":2' in poller.output()


def test_check_finds_no_fault(form: Form) -> None:
    found = form.reported("check", "--only", "redis", "--only", "gates", "--json")["findings"]
    assert {one["state"] for one in found} == {"ok"}, found
    assert any("composite" in one["what"] for one in found)


def test_a_request_submitted_with_once_runs_once(form: Form) -> None:
    name = f"once-{time.time_ns()}"
    first = ["submit", "--prompt", "hi", "--model", "m", "--once", "1h", "--id", name]
    assert "choices" in form.run(*first, "--wait", "--timeout", "60s")
    assert f"{name} was submitted before; it is finished" in form.run(*first)


def test_a_request_in_flight_is_cancelled_and_its_result_read(form: Form) -> None:
    with form.client() as client:
        endless = client.submit({"prompt": "all", "max_tokens": 100_000}, deadline=time.time() + 600)
        wait_until(lambda: client.look_up(endless) is RequestState.CLAIMED, "the endless one in flight")
        assert f"{endless.id} cancelled" in form.run("cancel", endless.id)
    reported = form.reported("results", "--take", "1", "--format", "json")
    assert (reported["id"], reported["error_code"]) == (endless.id, "CANCELLED")


def test_a_closed_budget_holds_requests_and_an_open_one_admits_them(form: Form) -> None:
    form.write("SET", BUDGET, "0")
    wait_until(lambda: "closed" in form.run("top", "--once"), "the gate to be closed, and shown so")
    with form.client() as client:
        held = client.submit({"prompt": "x"}, deadline=time.time() + 600, has_own_results=True)
        assert client.look_up(held) is RequestState.PENDING
        form.write("SET", BUDGET, "1")
        assert client.wait(held, within=60).status_code == 200


def test_a_batch_runs(form: Form, tmp_path: Path) -> None:
    rows = [
        {
            "custom_id": f"c{n}",
            "method": "POST",
            "url": "/v1/completions",
            "body": {"model": "m", "prompt": "x"},
        }
        for n in range(LINES)
    ]
    lines = tmp_path / "lines.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out.jsonl"
    form.run("batch", "run", str(lines), "--out", str(out), "--deadline", "10m")
    assert {json.loads(line)["custom_id"] for line in out.read_text().splitlines()} == {f"c{n}" for n in range(LINES)}


def test_dead_letters_are_listed_shown_queued_again_and_dropped(form: Form) -> None:
    form.write("ZADD", QUEUE, "1", '{"id": 5, "payload": {}}')
    wait_until(lambda: "no dead letters" not in form.run("dead", "list"), "the dead letter")
    dead_id = form.run("dead", "list").splitlines()[-1].split()[0]
    assert '"member"' in form.run("dead", "show", dead_id)
    form.run("dead", "requeue", dead_id, "--force")
    wait_until(lambda: _dead_count(form) == 1, "it to die again")
    form.run("dead", "drop", "--all", "--yes")
    assert _dead_count(form) == 0


def _dead_count(form: Form) -> int:
    reported = form.run("dead", "list")
    return 0 if "no dead letters" in reported else 1


def test_results_go_to_a_webhook(form: Form, tmp_path: Path) -> None:
    with form.client() as client:
        sent: Submission = client.submit({"prompt": "x"}, deadline=time.time() + 600)
        wait_until(lambda: client.look_up(sent) is RequestState.FINISHED, "its result")
    secret = tmp_path / "secret"
    secret.write_text("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n")
    url = f"http://127.0.0.1:{free_port()}/hook"
    flags = ["--secret-file", str(secret), "--allow-private", "--for", "1s", "--give-up", "1s"]
    reported = form.run("webhook", url, *flags)
    assert "0 delivered, 1 given up" in reported, "no server listens there, and the command reports it"
    assert sent.id in reported


def test_the_status_page_shows_queue_and_pollers(form: Form) -> None:
    port = free_port()
    with Child("status", [COMMAND, "status", "--port", str(port)], form.variables) as page:
        page.wait_for(lambda output: output if "status page on" in output else None)

        def shown() -> str:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as answer:
                    return str(answer.read().decode())
            except OSError:
                return ""

        wait_until(lambda: QUEUE in shown() and "shared" in shown(), "queue and pool on the page")
        assert SECRET not in shown()
