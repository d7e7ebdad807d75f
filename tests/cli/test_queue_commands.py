"""`submit`, `results` and `batch` as a shell meets them: flags, output, exit codes, Ctrl-C, kill -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from click.testing import CliRunner, Result
from redis import Redis

from handlers.cli import main
from handlers.cli.where import not_cancelled_text, whereabouts_text
from handlers.contract.request import Request, decode_member
from handlers.redis_store.admin.status_board import POLLERS, FinishedRecord
from handlers.redis_store.admin.whereabouts import Place, Whereabouts
from handlers.redis_store.submit.submissions import RequestState
from handlers.status.report import PollerReport, PoolReport, QueueReport
from handlers.telemetry.dependencies import GateState
from tests.client.echo_poller import answer
from tests.servers.forked import LONG_REDIS_TIMEOUT
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-c", "from handlers.cli import main; main()"]


class Shell:
    """Runs commands against queue names of one test's own."""

    def __init__(self, url: str, redis: Redis) -> None:
        name = uuid.uuid4().hex
        self.redis = redis
        self.queue = f"requests-{name}"
        self.results = f"results-{name}"
        self.env = {
            "REDIS_URL": url,
            "REQUEST_QUEUE_NAME": self.queue,
            "RESULT_QUEUE_NAME": self.results,
            **LONG_REDIS_TIMEOUT,
        }

    def run(self, *arguments: str, stdin: str = "") -> Result:
        return CliRunner().invoke(main, list(arguments), input=stdin, env=self.env)

    def start(self, *arguments: str, stdin: str = "") -> subprocess.Popen[str]:
        started = subprocess.Popen(
            [*PROGRAM, *arguments],
            cwd=ROOT,
            env={**os.environ, **self.env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert started.stdin is not None
        with started.stdin as pipe:
            pipe.write(stdin)
        started.stdin = None
        return started

    def queued(self) -> list[Request]:
        members = cast("list[bytes]", self.redis.zrange(self.queue, 0, -1))
        return [decode_member(member, self.queue).request for member in members]

    @contextmanager
    def echoing(self, most: int = sys.maxsize) -> Iterator[list[int]]:
        """Answer at most that many queued requests; counts them."""
        stop = threading.Event()
        taken: list[int] = []

        def work() -> None:
            while not stop.wait(0.01) and sum(taken) < most:
                taken.append(answer(self.redis, self.queue, min(50, most - sum(taken))))

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield taken
        finally:
            stop.set()
            thread.join()


@pytest.fixture
def shell(valkey_url: str, redis: Redis) -> Shell:
    return Shell(valkey_url, redis)


def write_requests(path: Path, count: int, **body: Any) -> str:
    with path.open("w") as file:
        for n in range(count):
            line = {
                "custom_id": f"c{n}",
                "method": "POST",
                "url": "/v1/completions",
                "body": {"n": n, **body},
            }
            file.write(json.dumps(line) + "\n")
    return str(path)


def has_lines(path: Path, count: int) -> bool:
    return path.exists() and path.read_bytes().count(b"\n") >= count


def test_cancel_reaches_requests_on_pubsub_by_the_push_doors_redis(shell: Shell) -> None:
    name = f"r-{uuid.uuid4().hex}"
    done = shell.run("cancel", "--from", "pubsub", "--dedupe-redis-url", shell.env["REDIS_URL"], name)
    assert (done.exit_code, done.output) == (0, f"{name} cancelled, unless it was answered\n")
    assert float(cast("bytes", shell.redis.get(f"delivery-cancel:{name}"))) == pytest.approx(time.time(), abs=60)
    shell.redis.delete(f"delivery-cancel:{name}")


def test_cancel_without_the_push_doors_redis_names_it(shell: Shell) -> None:
    done = shell.run("cancel", "--to", "pubsub", "r1")
    assert done.exit_code == 2
    assert "DEDUPE_REDIS_URL" in done.output


def test_cancel_reports_for_each_id_whether_it_was_live(shell: Shell) -> None:
    shell.run("submit", "--prompt", "hi", "--id", "r1")
    done = shell.run("cancel", "r1", "nobody")
    assert (done.exit_code, done.output.split("\n")[0]) == (1, "r1 cancelled")
    assert done.output.split("\n")[1].startswith("nobody not cancelled: unknown in this queue")
    token = cast("bytes", shell.redis.get("request-active:r1"))
    assert shell.redis.get("request-cancel:r1") == token
    shell.redis.delete("request-active:r1", "request-cancel:r1", "request-cancellations")


@pytest.mark.parametrize(
    ("internal", "reason"),
    [
        ({}, "has no token, so it cannot be cancelled"),
        (
            {"request_token": "t"},
            "not cancelled: not queued by our client or commands; only its producer can cancel it, with its token",
        ),
    ],
)
def test_cancel_reports_why_a_queued_request_cannot_be_cancelled(
    shell: Shell, internal: dict[str, str], reason: str
) -> None:
    deadline = time.time() + 600
    request = {"id": "foreign", "deadline": deadline, "payload": {"n": 1}}
    member = {"internal": internal, "request_kind": "plain", "data": request} if internal else request
    shell.redis.zadd(shell.queue, {json.dumps(member): deadline})
    done = shell.run("cancel", "foreign")
    assert (done.exit_code, done.output) == (1, f"foreign {reason}\n")


def test_a_request_that_was_cancelled_before_is_called_already_cancelled() -> None:
    record = FinishedRecord(token="t", outcome="CANCELLED", at=0.0, queue="q")
    found = Whereabouts("r", RequestState.CANCELLED, finished=record)
    assert not_cancelled_text(found) == "already cancelled at 1970-01-01 00:00:00Z"


def test_submit_takes_a_payload_from_stdin_and_prints_the_id(shell: Shell) -> None:
    done = shell.run(
        "submit", "-", "--tier", "batch", "--tenant", "alice", "--header", "x-a=b=c", stdin=' {"n": 1.0 }\n'
    )
    [request] = shell.queued()
    assert (done.exit_code, done.stdout) == (0, f"{request.id}\n")
    assert request.payload == b'{"n": 1.0 }'
    assert (request.labels, request.metadata) == ({"tier": "batch"}, {"userid": "alice"})
    assert request.headers == {"x-a": "b=c"}
    assert request.deadline == pytest.approx(time.time() + 3600, abs=300)


def test_submit_takes_a_whole_body_and_flags_win(shell: Shell, tmp_path: Path) -> None:
    body = tmp_path / "request.json"
    deadline = int(time.time()) + 500
    fields = {"id": "r1", "deadline": str(deadline), "payload": {"n": 1}, "metadata": {"a": "1", "b": "2"}}
    body.write_text(json.dumps(fields))
    assert shell.run("submit", str(body), "--metadata", "b=3").stdout == "r1\n"
    assert shell.run("submit", str(body), "--id", "r2", "--deadline", "2h").stdout == "r2\n"
    first, second = shell.queued()
    assert (first.id, first.deadline, first.metadata) == ("r1", deadline, {"a": "1", "b": "3"})
    assert second.id == "r2"
    assert second.deadline == pytest.approx(time.time() + 7200, abs=300)


def test_submit_builds_a_payload_from_a_prompt(shell: Shell) -> None:
    assert shell.run("submit", "--prompt", "Hi", "--model", "m", "--max-tokens", "5").exit_code == 0
    assert json.loads(shell.queued()[0].payload) == {"model": "m", "prompt": "Hi", "max_tokens": 5}


def test_submit_waits_for_its_own_result(shell: Shell) -> None:
    with shell.echoing():
        good = shell.run("submit", "-", "--wait", "--timeout", "60s", stdin='{"n":1}')
        bad = shell.run("submit", "-", "--wait", "--timeout", "60s", stdin='{"fail":400}')
    assert (good.exit_code, good.stdout) == (0, '{"n":1}\n')
    assert (bad.exit_code, bad.stdout) == (1, '{"fail":400}\n')
    late = shell.run("submit", "-", "--id", "late", "--wait", "--timeout", "50ms", stdin='{"n":1}')
    assert (late.exit_code, late.stdout) == (3, "")
    assert "late: no result within 0.05 s;" in late.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [((), "needs an id"), (("--id", "a", "--to", "pubsub", "--project", "p"), "needs Redis")],
)
def test_submit_once_is_refused_if_earlier_submissions_are_unknown(
    shell: Shell, flags: tuple[str, ...], message: str
) -> None:
    run = shell.run("submit", "-", "--once", "1h", *flags, stdin='{"n":1}')
    assert (run.exit_code, run.stdout) == (2, "")
    assert message in run.stderr


def test_submit_once_does_not_wait_if_the_first_result_is_in_a_shared_list(shell: Shell) -> None:
    """The first is finished, and had no result list of its own."""
    name = uuid.uuid4().hex
    assert shell.run("submit", "-", "--id", name, "--once", "1h", stdin='{"n":1}').exit_code == 0
    shell.redis.delete(f"request-active:{name}")
    run = shell.run("submit", "-", "--id", name, "--once", "1h", "--wait", stdin='{"n":1}')
    assert (run.exit_code, run.stdout) == (3, "")
    assert "it is finished" in run.stderr


def test_submit_with_an_idempotency_key_submits_once_and_reports_a_conflict(shell: Shell) -> None:
    key = ("--idempotency-key", uuid.uuid4().hex)
    first, again = (shell.run("submit", "-", *key, stdin='{"n":1}') for _ in range(2))
    assert (first.exit_code, again.exit_code) == (0, 0)
    assert again.stdout == first.stdout
    assert "was submitted before; it is pending" in again.stderr
    other = shell.run("submit", "-", *key, stdin='{"n":2}')
    assert (other.exit_code, other.stdout) == (6, "")
    assert first.stdout.strip() in other.stderr
    assert "use a new key" in other.stderr


@pytest.mark.parametrize("flags", [("--to", "pubsub"), ("--id", "r", "--once", "1h")])
def test_submit_refuses_an_idempotency_key_that_it_cannot_honour(shell: Shell, flags: tuple[str, ...]) -> None:
    run = shell.run("submit", "-", "--idempotency-key", "k", *flags, stdin='{"n":1}')
    assert run.exit_code == 2
    assert "--idempotency-key" in run.stderr


def test_submit_once_submits_once(shell: Shell) -> None:
    name = uuid.uuid4().hex
    runs = [shell.run("submit", "-", "--id", name, "--once", "1h", stdin='{"n":1}') for _ in range(2)]
    assert [(done.exit_code, done.stdout) for done in runs] == [(0, f"{name}\n")] * 2
    assert "it is pending" in runs[1].stderr
    assert len(shell.queued()) == 1


def test_the_first_attempt_is_printed_as_attempt_1() -> None:
    place = Place("claimed", "q", "t", 0, 160.0)
    text = whereabouts_text(Whereabouts("r", RequestState.CLAIMED, [place]), 100.0)
    assert text == "r  in flight, or waiting at a gate, queue q, attempt 1, deadline in 1m00s"


def test_the_header_authorization_is_noted(shell: Shell) -> None:
    done = shell.run("submit", "--prompt", "Hi", "--header", "authorization=Bearer x")
    assert (done.exit_code, "ALLOW_REQUEST_AUTHORIZATION=true" in done.stderr) == (0, True)
    assert "note:" not in shell.run("submit", "--prompt", "Hi", "--header", "x-key=v").stderr


def test_a_waiting_user_reads_that_no_poller_serves_the_queue_or_its_gate_is_closed(
    shell: Shell, tmp_path: Path
) -> None:
    source, out = write_requests(tmp_path / "in.jsonl", 2), str(tmp_path / "out.jsonl")
    missing = f"note: no poller reported queue {shell.queue} in the last 20 s"
    for command in (["submit", "--prompt", "Hi", "--id", "a", "--wait"], ["batch", "run", source, "--out", out]):
        with shell.start(*command) as waiting:
            assert waiting.stderr is not None
            assert any(missing in line for line in waiting.stderr), "while it still runs"
            waiting.kill()
            waiting.communicate(timeout=60)
    assert missing in shell.run("where", "a").stderr

    gate = GateState("redis", 0.0)
    for gates in ([gate], []):
        queue = QueueReport(shell.queue, "pool", "async", 0, "closed", gates)
        report = PollerReport(time.time() + 600, "host", [], [queue])
        shell.redis.hset(POLLERS, "poller", msgspec.json.encode(report))
        shown = shell.run("where", "a").stderr
        note = f"note: the gate redis of queue {shell.queue} is closed: its budget is 0\n"
        assert shown == (note if gates else "")
    pool = PoolReport("pool", 1, 0, 0.0, [GateState("endpoint-scrape", 0.0, 1.1, 1.0)])
    report = PollerReport(time.time() + 600, "host", [pool], [queue])
    shell.redis.hset(POLLERS, "poller", msgspec.json.encode(report))
    note = "note: the gate endpoint-scrape of pool pool is closed: reads 1.1, closes at 1\n"
    assert shell.run("where", "a").stderr == note
    shell.redis.hdel(POLLERS, "poller")


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["submit"], "", "FILE"),
        (["submit", "-", "--prompt", "x"], "", "FILE"),
        (["submit", "-"], "nonsense", "expected one JSON object, got text that is not JSON"),
        (["submit", "-"], '{"payload":{},"id":7}', "id: expected"),
        (["submit", "-"], '{"payload":{},"deadline":"soon"}', "deadline: expected"),
        (["submit", "-", "--deadline", "tomorrow"], "{}", "expected a time"),
        (
            ["submit", "-", "--deadline", "1000000000"],
            "{}",
            "expected a time in the future: a duration such as 10m, an ISO time or Unix seconds, got 2001-",
        ),
        (["submit", "-"], '{"a": 1,}', "body: expected one JSON object, got malformed JSON (trailing comma"),
        (["submit", "-", "--header", "x"], "{}", "expected KEY=VALUE"),
        (
            ["submit", "/does/not/exist"],
            "",
            "FILE: expected a file, or - for stdin (for a text, use --prompt), got",
        ),
        (["submit", "-", "--to", "pubsub"], "{}", "PROJECT_ID"),
        (["submit", "-", "--redis-url", "http://secret"], "{}", "REDIS_URL"),
        (["batch", "status", "/does/not/exist"], "", "no batch has written this file"),
    ],
)
def test_invalid_input_gives_one_line_and_code_2(shell: Shell, arguments: list[str], stdin: str, message: str) -> None:
    done = shell.run(*arguments, stdin=stdin)
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr
    assert shell.queued() == []


def test_a_broker_that_does_not_answer_is_code_4(shell: Shell) -> None:
    done = shell.run("results", "--redis-url", "redis://127.0.0.1:1", "--for", "0s")
    assert (done.exit_code, "error: Redis" in done.stderr) == (4, True)


def test_results_are_json_lines_to_a_pipe(shell: Shell) -> None:
    for n in range(3):
        shell.run("submit", "-", "--id", f"r{n}", stdin='{"n":1}')
    answer(shell.redis, shell.queue)
    two = shell.run("results", "-n", "2")
    rest = shell.run("results", "--for", "0s")
    assert [json.loads(text)["id"] for text in two.stdout.splitlines()] == ["r0", "r1"]
    assert [json.loads(text)["id"] for text in rest.stdout.splitlines()] == ["r2"]
    assert json.loads(rest.stdout)["status_code"] == 200
    assert (two.exit_code, rest.exit_code) == (0, 0)
    assert shell.run("results", "-n", "1", "--for", "0s").exit_code == 3


def test_results_in_a_table_show_no_markup(shell: Shell) -> None:
    """Untrusted text cannot move the cursor and is not read as markup."""
    shell.run("submit", "-", "--id", "r[red]1", stdin='{"n":"[bold]x"}')
    answer(shell.redis, shell.queue)
    text = '{"id":"r2","error_code":"CANCELLED","error_message":"\\u001b[2Jgone"}'
    hostile = '{"id":"r3","error_code":"[/x]\\u001b[1m","error_message":"gone"}'
    shell.redis.lpush(shell.results, text, hostile)
    done = shell.run("results", "--for", "0s", "--format", "table")
    assert "r[red]1" in done.stdout
    assert "[bold]x" in done.stdout
    assert "CANCELLED" in done.stdout
    assert "[/x]" in done.stdout
    assert "\x1b" not in done.stdout


def test_results_in_a_table_have_headings(shell: Shell) -> None:
    assert shell.run("results", "--for", "0s", "--format", "table").stdout == ""
    for name in ("r1", "r2"):
        shell.redis.lpush(shell.results, json.dumps({"id": name, "status_code": 200, "payload": "good"}))
    heading, *rows = shell.run("results", "--for", "0s", "--format", "table").stdout.splitlines()
    assert heading.split() == ["REQUEST", "OUTCOME", "PAYLOAD", "OR", "ERROR"]
    assert [row.split()[0] for row in rows] == ["r1", "r2"]
    assert [row.index("200") for row in rows] == [heading.index("OUTCOME")] * 2
    assert [row.index("good") for row in rows] == [heading.index("PAYLOAD")] * 2


@pytest.mark.parametrize("length", [10, 36, 76, 200])
def test_results_in_a_table_never_truncate_an_id(shell: Shell, length: int) -> None:
    name = "r" * length
    shell.redis.lpush(shell.results, json.dumps({"id": name, "status_code": 200, "payload": "p" * 200}))
    shell.env["COLUMNS"] = "80"
    [_, line] = shell.run("results", "--for", "0s", "--format", "table").stdout.splitlines()
    assert line.split()[:2] == [name, "200"]
    assert ("p" * 10 in line, line.endswith("…")) == (length < 50, length < 50)
    assert len(line) <= max(80, length + 22)


def test_results_end_cleanly_with_ctrl_c(shell: Shell) -> None:
    with shell.start("results") as follower:
        shell.run("submit", "-", "--id", "r1", stdin='{"n":1}')
        answer(shell.redis, shell.queue)
        assert follower.stdout is not None
        assert json.loads(follower.stdout.readline())["id"] == "r1"
        follower.send_signal(signal.SIGINT)
        _, errors = follower.communicate(timeout=60)
        assert (follower.returncode, errors) == (130, "")
    assert shell.redis.zcard(f"{shell.results}:result-claims-idx") == 0


def test_a_batch_runs_and_prints_its_outcome(shell: Shell, tmp_path: Path) -> None:
    source = write_requests(tmp_path / "in.jsonl", 500)
    out = str(tmp_path / "out.jsonl")
    with shell.echoing():
        done = shell.run("batch", "run", source, "--out", out, "--deadline", "1h", "--tenant", "alice")
        again = shell.run("batch", "run", source, "--out", out)
    assert (done.exit_code, again.exit_code) == (0, 0)
    assert "500 answered" in done.stderr
    assert len(Path(out).read_text().splitlines()) == 500
    status = json.loads(shell.run("batch", "status", out, "--json").stdout)
    assert (status["status"], status["total"], status["completed"], status["failed"]) == ("done", 500, 500, 0)
    assert "done" in shell.run("batch", "status", out).stdout
    assert shell.run("batch", "cancel", out).exit_code == 0


def test_a_batch_with_errors_is_code_1(shell: Shell, tmp_path: Path) -> None:
    source = write_requests(tmp_path / "in.jsonl", 3, fail=422)
    with shell.echoing():
        done = shell.run("batch", "run", source, "--out", str(tmp_path / "o"), "--errors", str(tmp_path / "bad.jsonl"))
    assert done.exit_code == 1
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 3


def test_an_interrupted_wait_reports_that_the_request_stays_queued(shell: Shell) -> None:
    with shell.start("submit", "--prompt", "Hi", "--id", "w1", "--wait") as waiting:
        wait_until(lambda: shell.redis.zcard(shell.queue) == 1, "the request in the queue")
        assert waiting.stderr is not None
        assert waiting.stderr.readline() == "w1\n"  # printed before the wait
        waiting.send_signal(signal.SIGINT)
        _, message = waiting.communicate(timeout=60)
    assert waiting.returncode == 130
    assert f"interrupted: w1 stays queued; `async-processor where w1 --queue {shell.queue}` shows its state" in message


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_batch_resumes(shell: Shell, tmp_path: Path, how: signal.Signals) -> None:
    count = 3_000
    source = write_requests(tmp_path / "in.jsonl", count)
    out = tmp_path / "out.jsonl"
    arguments = ["batch", "run", source, "--out", str(out), "--window", "450"]
    total = 0
    for stop_after in (150, 750):
        with shell.start(*arguments) as runner, shell.echoing(2 * stop_after) as taken:
            wait_until(partial(has_lines, out, stop_after), f"{stop_after} answers")
            runner.send_signal(how)
            runner.communicate(timeout=60)
            assert runner.returncode == (130 if how is signal.SIGINT else -how)
        total += sum(taken)
    status = json.loads(shell.run("batch", "status", str(out), "--json").stdout)
    assert status["status"] == "interrupted"
    assert 750 <= status["completed"] < count
    with shell.echoing() as taken:
        done = shell.run(*arguments)
    assert done.exit_code == 0, done.stderr
    answers = [json.loads(text)["response"]["body"]["n"] for text in out.read_text().splitlines()]
    assert sorted(answers) == list(range(count)), "none lost, none doubled"
    assert total + sum(taken) == count, "none submitted twice"
    assert shell.redis.keys(f"{shell.results}*") == []


def test_a_batch_is_cancelled_from_another_terminal(shell: Shell, tmp_path: Path) -> None:
    source = write_requests(tmp_path / "in.jsonl", 50)
    out = tmp_path / "out.jsonl"
    with shell.start("batch", "run", source, "--out", str(out)) as runner:
        wait_until(lambda: shell.redis.zcard(shell.queue) == 50, "the lines in the queue")
        assert "cancelling" in shell.run("batch", "cancel", str(out)).stdout
        batch = json.loads(Path(f"{out}.batch").read_text())["batch"]
        last = f"request-cancel:{batch}-50"
        wait_until(lambda: shell.redis.exists(last), "the cancellation")
        with shell.echoing():
            runner.communicate(timeout=60)
        assert runner.returncode == 5


def test_help_imports_no_client() -> None:
    program = (
        "import sys; from handlers.cli import main\n"
        "for name in ('submit', 'results', 'batch'):\n"
        "    main([name, '--help'], standalone_mode=False)\n"
        "assert not {'redis', 'aiohttp', 'rich'} & set(sys.modules), 'too much for a help text'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Exit codes" in done.stdout


def test_peeking_leaves_results_for_their_reader(shell: Shell) -> None:
    for number in range(3):
        shell.redis.lpush(shell.results, json.dumps({"id": f"r{number}", "status_code": 200, "payload": "x"}))
    searched = shell.run("results", "--peek", "-n", "2")
    assert [json.loads(line)["id"] for line in searched.stdout.splitlines()] == ["r0", "r1"]
    assert shell.run("results", "--peek").stdout.count("\n") == shell.redis.llen(shell.results) == 3
    taken = shell.run("results", "-n", "3")
    assert [json.loads(line)["id"] for line in taken.stdout.splitlines()] == ["r0", "r1", "r2"]
    assert shell.run("results", "--peek", "-n", "1").exit_code == 3


def test_an_unreachable_redis_names_the_variable_and_the_flag(shell: Shell) -> None:
    done = shell.run("submit", "--prompt", "Hi", "--redis-url", "redis://127.0.0.1:1")
    assert (done.exit_code, "REDIS_URL or --redis-url" in done.stderr) == (4, True)
