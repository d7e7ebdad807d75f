"""`batch` by custom_id, from stdin and in a pipe; results that cannot be decoded are reported."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from redis import Redis

from handlers.batch.run import Progress
from handlers.cli import batch
from handlers.demo.servers import free_port
from tests.chaos.proxy import Proxy
from tests.cli.test_queue_commands import Shell, has_lines, write_requests
from tests.client.conftest import redis, valkey_url
from tests.client.echo_poller import answer
from tests.servers.forked import COMMAND
from tests.servers.terminal import Terminal
from tests.waiting import wait_until

__all__ = ["redis", "valkey_url"]

PASSING = re.compile(r"note: |[\d,]+ of [\d,]+ answered, ")
"""The beginning of a line that a run may print at any time: a note, or the progress after each 30 s."""
BROKEN = b'{"id":"x","payload":"\xff"}'


@pytest.fixture
def shell(valkey_url: str, redis: Redis) -> Shell:
    return Shell(valkey_url, redis)


def test_lines_are_found_and_cancelled_by_their_custom_id(shell: Shell, tmp_path: Path) -> None:
    source = write_requests(tmp_path / "in.jsonl", 600)
    out = tmp_path / "out.jsonl"
    with shell.start("batch", "run", source, "--out", str(out), "--window", "500") as runner:
        wait_until(lambda: shell.redis.zcard(shell.queue) == 500, "the first lines in the queue")
        found = shell.run("batch", "where", str(out), "c0", "c555", "nobody")
        assert found.exit_code == 1, found.output
        first, late, unknown = found.stdout.splitlines()
        assert first.startswith("c0 (request ")
        assert "queued" in first
        assert late == f"c555  not queued yet: line 556 of {source}"
        assert unknown == f"nobody  no line of {source} has this custom_id"

        cancelled = shell.run("batch", "cancel", str(out), "c1")
        assert (cancelled.exit_code, cancelled.stdout) == (0, "c1 cancelled\n")
        unsent = shell.run("batch", "cancel", str(out), "c555", "c556")
        assert unsent.exit_code == 0, unsent.output
        assert unsent.stdout == "c555 cancelled before it was queued\nc556 cancelled before it was queued\n"
        refused = shell.run("batch", "cancel", str(out), "c557", "nobody")
        assert refused.exit_code == 1
        assert refused.stdout.endswith(f"nobody no line of {source} has this custom_id\n")
        now = shell.run("batch", "where", str(out), "c555")
        assert now.stdout == f"c555  cancelled before it was queued: line 556 of {source}\n"
        batch_id = json.loads(Path(f"{out}.batch").read_text())["batch"]
        # Pollers find the cancellation of line 2.
        assert shell.redis.exists(f"request-cancel:{batch_id}-2")  # of the command, does not change any more
        with shell.echoing():
            runner.communicate(timeout=60)

    done = shell.run("batch", "where", str(out), "c0")
    assert (done.exit_code, done.stdout) == (0, f"c0  answered, in {out}\n")
    errors = [json.loads(line) for line in (tmp_path / "out.errors.jsonl").read_text().splitlines()]
    assert {line["custom_id"]: line["error"]["code"] for line in errors} == dict.fromkeys(
        ("c555", "c556", "c557"), "batch_cancelled"
    )
    assert not Path(f"{out}.cancel-lines").exists()
    again = shell.run("batch", "cancel", str(out), "c0")
    assert (again.exit_code, again.stdout) == (1, f"c0 answered, in {out}\n")


def test_messages_show_absolute_paths(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_requests(Path("in.jsonl"), 2)
    with shell.echoing():
        runs = [shell.run("batch", "run", "in.jsonl", "--out", "out.jsonl", "--errors", "errors.jsonl")]
    commands = (("status",), ("where", "c0"), ("where", "nobody"), ("cancel", "nobody"))
    runs += [shell.run("batch", name, "out.jsonl", *others) for name, *others in commands]
    output = "".join(run.output for run in runs)
    names = ("in.jsonl", "out.jsonl", "errors.jsonl")
    assert all(f"{tmp_path}/{name}" in output for name in names)
    assert not [name for name in names if name in output.replace(f"{tmp_path}/{name}", "")]


def test_a_line_whose_result_waits_is_not_reported_as_unsent(shell: Shell, tmp_path: Path) -> None:
    source = write_requests(tmp_path / "in.jsonl", 5)
    out = tmp_path / "out.jsonl"
    with shell.start("batch", "run", source, "--out", str(out)) as runner:
        wait_until(lambda: shell.redis.zcard(shell.queue) == 5, "the lines in the queue")
        runner.kill()
        runner.communicate(timeout=60)
    answer(shell.redis, shell.queue)
    refused = shell.run("batch", "cancel", str(out), "c4")
    assert (refused.exit_code, refused.stdout.split(":")[0]) == (1, "c4 not cancelled"), refused.stdout
    with shell.echoing():
        done = shell.run("batch", "run", source, "--out", str(out))
    assert (done.exit_code, len(out.read_text().splitlines())) == (0, 5), done.stderr


def test_requests_from_stdin_are_stored_next_to_the_output(shell: Shell, tmp_path: Path) -> None:
    text = Path(write_requests(tmp_path / "in.jsonl", 20)).read_text()
    out = tmp_path / "out.jsonl"
    with shell.echoing():
        done = shell.run("batch", "run", "-", "--out", str(out), stdin=text)
    assert done.exit_code == 0, done.stderr
    assert len(out.read_text().splitlines()) == 20
    kept = Path(f"{out}.input")
    assert (kept.read_text(), kept.stat().st_mode & 0o777) == (text, 0o600)


def test_a_batch_from_stdin_continues_without_its_stdin(shell: Shell, tmp_path: Path) -> None:
    text = Path(write_requests(tmp_path / "in.jsonl", 600)).read_text()
    out = tmp_path / "out.jsonl"
    arguments = ["batch", "run", "-", "--out", str(out), "--window", "500"]
    with shell.start(*arguments, stdin=text) as runner:
        wait_until(lambda: shell.redis.zcard(shell.queue) == 500, "the first lines in the queue")
        runner.kill()
        runner.communicate(timeout=60)
    with shell.echoing():
        refused = shell.run(*arguments, stdin="something else")
        assert (refused.exit_code, out.exists() and out.read_text()) == (2, "")
        assert f"stdin: expected the unchanged input of {out}.batch" in refused.stderr
        done = shell.run(*arguments)
    assert done.exit_code == 0, done.stderr
    assert len(out.read_text().splitlines()) == 600
    assert shell.run(*arguments, stdin=text).exit_code == 0
    more = shell.run(*arguments, stdin=text + "{}")
    assert (more.exit_code, "got requests that differ" in more.stderr) == (2, True)


def test_a_resumed_batch_whose_stored_requests_were_deleted_reports_how_to_continue(
    shell: Shell, tmp_path: Path
) -> None:
    text = Path(write_requests(tmp_path / "in.jsonl", 20)).read_text()
    out = tmp_path / "out.jsonl"
    arguments = ["batch", "run", "-", "--out", str(out)]
    with shell.start(*arguments, stdin=text) as runner:
        wait_until(lambda: shell.redis.zcard(shell.queue) == 20, "the lines in the queue")
        runner.kill()
        runner.communicate(timeout=60)
    Path(f"{out}.input").unlink()
    lost = shell.run(*arguments)
    assert (lost.exit_code, f"{out}.input: deleted" in lost.stderr) == (2, True)
    assert "pipe the same requests again" in lost.stderr
    other = shell.run(*arguments, stdin=text + text)
    assert (other.exit_code, "stdin: expected the unchanged input" in other.stderr) == (2, True)
    assert not Path(f"{out}.input").exists()
    with shell.echoing():
        assert shell.run(*arguments, stdin=text).exit_code == 0
    assert len(out.read_text().splitlines()) == 20


def test_a_finished_batch_whose_answers_were_deleted_is_not_called_done(shell: Shell, tmp_path: Path) -> None:
    source, out = write_requests(tmp_path / "in.jsonl", 3), tmp_path / "out.jsonl"
    arguments = ["batch", "run", source, "--out", str(out)]
    with shell.echoing():
        assert shell.run(*arguments).exit_code == 0
        out.unlink()
        refused = shell.run(*arguments)
        assert (refused.exit_code, f"{out}: deleted" in refused.stderr) == (2, True)
        assert f"to run it again, delete {out}.batch" in refused.stderr
        assert f"output {out} (deleted)" in shell.run("batch", "status", str(out)).stdout
        for path in (Path(f"{out}.batch"), tmp_path / "out.errors.jsonl"):
            path.unlink()
        assert shell.run(*arguments).exit_code == 0
    assert len(out.read_text().splitlines()) == 3


def test_a_finished_batch_whose_answers_were_replaced_is_not_called_done(shell: Shell, tmp_path: Path) -> None:
    source, out = write_requests(tmp_path / "in.jsonl", 3), tmp_path / "out.jsonl"
    arguments = ["batch", "run", source, "--out", str(out)]
    with shell.echoing():
        assert shell.run(*arguments).exit_code == 0
    answers = out.read_text()
    out.write_text("".join(answers.splitlines(keepends=True)[1:]) + '{"from": "another program"}\n')
    refused = shell.run(*arguments)
    assert (refused.exit_code, f"{out}: changed, holds 2 of 3 lines of this batch" in refused.stderr) == (2, True)
    assert f"to run it again, delete {out}.batch" in refused.stderr
    assert "restore" in refused.stderr
    shown = shell.run("batch", "status", str(out))
    assert shown.exit_code == 1
    assert f"output {out} (changed, holds 2 of 3 lines of this batch)" in shown.stdout
    out.write_text(answers)
    assert shell.run(*arguments).exit_code == shell.run("batch", "status", str(out)).exit_code == 0


def test_a_resumed_batch_refuses_flags_that_differ_from_the_first_run(shell: Shell, tmp_path: Path) -> None:
    source = write_requests(tmp_path / "in.jsonl", 5)
    out, errors = tmp_path / "out.jsonl", tmp_path / "other-errors.jsonl"
    arguments = ["batch", "run", source, "--out", str(out)]
    first = [*arguments, "--errors", str(errors), "--deadline", "90m", "--tier", "async"]
    with shell.start(*first) as runner:
        wait_until(lambda: shell.redis.zcard(shell.queue) == 5, "the lines in the queue")
        runner.kill()
        runner.communicate(timeout=60)
    others = {
        "--deadline": ("2h", "1h30m"),
        "--tier": ("batch", "async"),
        "--tenant": ("alice", "no value"),
        "--queue": ("other", shell.queue),
        "--results": ("other", shell.results),
        "--errors": (f"{tmp_path}/third.jsonl", str(errors)),
    }
    refused = shell.run(*arguments, *(part for flag, (value, _) in others.items() for part in (flag, value)))
    assert refused.exit_code == 2, refused.output
    for flag, (value, kept) in others.items():
        assert f"{flag}: expected {kept} as in the first run, got {value.replace('2h', '2h00m')}" in refused.stderr
    assert shell.redis.zcard(shell.queue) == 5
    with shell.echoing():
        assert shell.run(*first).exit_code == 0, "the same command continues"
    assert len(out.read_text().splitlines()) == 5
    assert errors.exists()


def test_a_resumed_batch_finds_its_error_file_without_the_flag(shell: Shell, tmp_path: Path) -> None:
    source = write_requests(tmp_path / "in.jsonl", 3)
    with Path(source).open("a") as file:
        file.write("broken\n")
    out, errors = tmp_path / "out.jsonl", tmp_path / "other-errors.jsonl"
    arguments = ["batch", "run", source, "--out", str(out)]
    with shell.start(*arguments, "--no-check", "--errors", str(errors)) as runner:
        wait_until(lambda: shell.redis.zcard(shell.queue) == 3, "the lines in the queue")
        runner.send_signal(signal.SIGINT)
        runner.communicate(timeout=60)
    with shell.echoing():
        assert shell.run(*arguments).exit_code == 1
    assert len(errors.read_text().splitlines()) == 1
    assert not (tmp_path / "out.errors.jsonl").exists()


@pytest.mark.parametrize("content", ["", "\n \n", "\ufeff\n"])
@pytest.mark.parametrize("is_stdin", [True, False])
def test_an_empty_input_is_an_error(shell: Shell, tmp_path: Path, content: str, is_stdin: bool) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(content, encoding="utf-8")
    for _ in range(2):
        done = shell.run("batch", "run", "-" if is_stdin else str(source), "--out", str(out), stdin=content)
        name = "stdin" if is_stdin else str(source)
        assert (done.exit_code, done.stderr) == (
            2, f"error: {name}: expected at least one request, got an empty input; nothing was queued\n"
        )  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    text = Path(write_requests(source, 2)).read_text()
    with shell.echoing():
        assert shell.run("batch", "run", "-", "--out", str(out), stdin=text).exit_code == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_stdin_is_read_leaves_no_files(shell: Shell, tmp_path: Path, number: int) -> None:
    out = tmp_path / "out.jsonl"
    with subprocess.Popen(
        [COMMAND, "batch", "run", "-", "--out", str(out)],
        env={**os.environ, **shell.env},
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as runner:
        wait_until(Path(f"{out}.input").exists, "the file for the requests")
        runner.send_signal(number)
        wait_until(lambda: runner.poll() is not None, "its end")  # while its stdin is still open
        _, message = runner.communicate(timeout=60)
    assert runner.returncode == 128 + number
    assert message == "interrupted while reading stdin; nothing was queued: pipe all requests again\n"
    assert list(tmp_path.iterdir()) == []
    assert shell.run("batch", "run", "-", "--out", str(out)).exit_code == 2, "there is nothing to resume"


def test_an_output_that_is_the_input_or_in_a_missing_folder_is_refused(shell: Shell, tmp_path: Path) -> None:
    source = write_requests(tmp_path / "in.jsonl", 2)
    for flag in ("--out", "--errors"):
        given = {"--out": str(tmp_path / "out.jsonl"), flag: source}
        done = shell.run("batch", "run", source, *(part for pair in given.items() for part in pair))
        assert (done.exit_code, done.stderr) == (
            2, f"error: {flag}: expected a file that is not the input, got {source}\n"
        )  # fmt: skip
    done = shell.run("batch", "run", source, "--out", "/nowhere/out.jsonl")
    assert (done.exit_code, done.stderr) == (
        2, "error: --out: expected a file in an existing folder, got /nowhere/out.jsonl\n"
    )  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_status_counts_the_answers_of_a_running_batch(shell: Shell, tmp_path: Path) -> None:
    source = write_requests(tmp_path / "in.jsonl", 30)
    out = tmp_path / "out.jsonl"
    with shell.start("batch", "run", source, "--out", str(out)) as runner:
        wait_until(lambda: shell.redis.zcard(shell.queue) == 30, "the lines in the queue")
        answer(shell.redis, shell.queue, 12)
        wait_until(lambda: len(out.read_text().splitlines()) == 12, "the answers in the file")
        shown = shell.run("batch", "status", str(out)).stdout
        runner.kill()
        runner.communicate(timeout=60)
    assert ": running," in shown
    assert "12 answered, 0 errors, of 30 requests" in shown


def test_the_summary_counts_errors_by_kind(shell: Shell, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    write_requests(source, 3, fail=422)
    with source.open("a") as file:
        file.write('{"custom_id": "wrong", "method": "GET"}\n')
    out = str(tmp_path / "out.jsonl")
    with shell.echoing():
        done = shell.run("batch", "run", str(source), "--out", out, "--no-check")
    assert done.exit_code == 1
    assert ": 3 http_422, 1 invalid_request" in done.stderr
    assert "4 errors: 3 http_422, 1 invalid_request" in shell.run("batch", "status", out).stdout


class HttpServer(BaseHTTPRequestHandler):
    """Answers 400 to everything that is not HTTP, without a log."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name in the base class
        pass


@contextmanager
def http_port() -> Iterator[int]:
    """The port of a server that speaks HTTP."""
    with ThreadingHTTPServer(("127.0.0.1", 0), HttpServer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def test_a_run_that_never_reaches_redis_ends_with_the_error_of_other_commands(shell: Shell, tmp_path: Path) -> None:
    source, out = write_requests(tmp_path / "in.jsonl", 3), str(tmp_path / "out.jsonl")
    refused = shell.env["REDIS_URL"].replace("//", "//nobody:canary@")
    with http_port() as port:
        for url in (f"redis://127.0.0.1:{free_port()}", f"redis://127.0.0.1:{port}", refused):
            ended = shell.run("batch", "run", source, "--out", out, "--redis-url", url)
            usual = shell.run("where", "r1", "--redis-url", url)
            assert ended.exit_code == usual.exit_code == 4, url
            assert ended.stderr == usual.stderr
            assert "canary" not in ended.output
    with shell.echoing():
        assert shell.run("batch", "run", source, "--out", out).exit_code == 0


def test_each_outage_during_a_run_is_one_line(shell: Shell, tmp_path: Path) -> None:
    server = ("127.0.0.1", int(re.findall(r":(\d+)", shell.env["REDIS_URL"])[-1]))
    with Proxy(server) as proxy:
        shell.env["REDIS_URL"] = f"redis://127.0.0.1:{proxy.port}"
        source = write_requests(tmp_path / "in.jsonl", 3)
        out = tmp_path / "out.jsonl"
        with shell.start("batch", "run", source, "--out", str(out)) as runner:
            assert runner.stderr is not None
            lines = (line for line in runner.stderr if not PASSING.match(line))
            wait_until(lambda: len(shell.queued()) == 3, "the lines are queued")
            for count in (1, 2):
                proxy.backends.clear()
                proxy.cut()
                assert next(lines).startswith("waiting for Redis: the server closed the connection")
                answer(shell.redis, shell.queue, 1)
                proxy.backends.append(server)
                wait_until(partial(has_lines, out, count), "the run continues")
            with shell.echoing():
                rest = list(lines)
        assert runner.returncode == 0
    assert len(rest) == 1, "only the summary"


def test_a_narrow_terminal_shows_all_numbers(shell: Shell, tmp_path: Path) -> None:
    source = write_requests(tmp_path / "in.jsonl", 2_000)
    arguments = ["batch", "run", source, "--out", str(tmp_path / "out.jsonl")]
    with Terminal(arguments, shell.env, size=(30, 80)) as terminal:
        wait_until(lambda: "2,000 unanswered, 0 retrying, 0 errors, ? left" in terminal.written, "the progress")
        shown = terminal.written
        terminal.press("\x03")
        assert terminal.end() == 130
    assert "0/2000" in shown
    assert "…" not in shown


@pytest.mark.parametrize("force_color", ["", "1"])
async def test_a_pipe_gets_a_progress_line_each_interval(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], force_color: str
) -> None:
    assert batch.LOGGED_EVERY_SECONDS == 30
    monkeypatch.setenv("FORCE_COLOR", force_color)
    monkeypatch.setattr(batch, "LOGGED_EVERY_SECONDS", 0.0)
    async with batch.BatchProgress(None) as progress:
        progress.update(Progress(total=10, completed=3, failed=1, unanswered=2))
    assert "4 of 10 answered, 0/s, 2 unanswered, 0 retrying, 1 error," in capsys.readouterr().err


async def test_a_pipe_gets_no_progress_line_before_the_interval(capsys: pytest.CaptureFixture[str]) -> None:
    async with batch.BatchProgress(None) as progress:
        progress.update(Progress(total=10, completed=3, failed=1, unanswered=2))
    assert capsys.readouterr().err == ""


def test_results_reports_undecodable_results(shell: Shell) -> None:
    shell.redis.lpush(shell.results, BROKEN)
    done = shell.run("results", "--for", "0s")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "1 result could not be decoded" in done.stderr


def test_webhook_reports_undecodable_results(shell: Shell, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    shell.redis.lpush(shell.results, BROKEN)
    arguments = ["http://127.0.0.1:1/", "--secret-file", str(secret), "--allow-private", "--for", "0s"]
    done = shell.run("webhook", *arguments)
    assert "0 delivered" in done.stderr
    assert "1 result could not be decoded" in done.stderr


def test_batch_reports_and_keeps_undecodable_results(shell: Shell, tmp_path: Path) -> None:
    source = write_requests(tmp_path / "in.jsonl", 3)
    out = tmp_path / "out.jsonl"
    with shell.start("batch", "run", source, "--out", str(out)) as runner:
        wait_until(lambda: shell.redis.zcard(shell.queue) == 3, "the lines in the queue")
        shell.redis.lpush(json.loads(Path(f"{out}.batch").read_text())["results"], BROKEN)
        with shell.echoing():
            _, message = runner.communicate(timeout=60)
    assert f"1 result could not be decoded; kept in {out}.undecodable" in message
