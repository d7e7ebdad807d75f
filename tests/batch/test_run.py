"""A batch in OpenAI's format: no line twice, no result lost or duplicated, after any kill."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis import Redis

from handlers.batch.files import AnsweredLines, BatchConflict, BatchFiles, BatchOutput, BatchState
from handlers.batch.lines import (
    BatchLine,
    InvalidLine,
    decode_line,
    decode_output,
    encode_error,
    encode_result_line,
)
from handlers.batch.queue import BatchQueue
from handlers.batch.run import BatchOptions, BatchRun, Progress
from handlers.batch.start import begin_or_resume
from handlers.client import ClientOptions, Result
from handlers.contract.result import ErrorCode, encode_result, error_result
from handlers.redis_store.submit.submissions import MemberParts
from tests.client.echo_poller import answer
from tests.servers.valkey import LONG_LIMIT
from tests.waiting import wait_until_async


def write_requests(path: Path, count: int, **body: Any) -> Path:
    with path.open("w") as file:
        for n in range(count):
            line = {
                "custom_id": f"c{n}",
                "method": "POST",
                "url": "/v1/completions",
                "body": {"n": n, **body},
            }
            file.write(json.dumps(line) + "\n")
    return path


@contextmanager
def echoing(redis: Redis, queue: str, *, duplicates: bool = False) -> Iterator[list[int]]:
    """Answer queued requests from a thread; counts them."""
    stop = threading.Event()
    taken: list[int] = []

    def work() -> None:
        while not stop.wait(0.01):
            taken.append(answer(redis, queue))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield taken
    finally:
        stop.set()
        thread.join()


def begin(files: BatchFiles, source: Path, options: ClientOptions, **fields: Any) -> BatchState:
    given: dict[str, Any] = {"deadline": timedelta(hours=1), "tier": "batch", "tenant": "alice"}
    given |= {"queue": options.queue, "results": options.results, **fields}
    return begin_or_resume(files, source, **given)


def unexpected(error: Exception) -> None:
    raise error


async def run(
    files: BatchFiles, state: BatchState, url: str, *, window: int = 1_000, late_seconds: float = 60.0
) -> list[Progress]:
    reports: list[Progress] = []
    queue = BatchQueue(url, state, access=LONG_LIMIT)
    options = BatchOptions(window=window, late_seconds=late_seconds)
    try:
        await BatchRun(files, state, queue, options=options, report=reports.append, report_outage=unexpected).run()
    finally:
        await queue.close()
    return reports


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


async def test_every_line_gets_its_answer_once(
    valkey_url: str, redis: Redis, options: ClientOptions, tmp_path: Path
) -> None:
    files = BatchFiles(tmp_path / "out.jsonl")
    source = write_requests(tmp_path / "in.jsonl", 3_000)
    state = begin(files, source, options)
    with echoing(redis, options.queue) as taken:
        reports = await run(files, state, valkey_url)
    assert sum(taken) == 3_000
    assert max(report.unanswered for report in reports) <= 1_000
    out = lines(files.out)
    assert {line["custom_id"]: line["response"]["body"]["n"] for line in out} == {f"c{n}": n for n in range(3_000)}
    assert (len(out), out[0]["response"]["status_code"], out[0]["error"]) == (3_000, 200, None)
    assert (state.outcome, state.completed, state.failed) == ("done", 3_000, 0)
    assert files.errors.read_bytes() == b""
    assert redis.exists(state.results) == 0


async def test_a_window_smaller_than_a_call_holds(
    valkey_url: str, redis: Redis, options: ClientOptions, tmp_path: Path
) -> None:
    source = write_requests(tmp_path / "in.jsonl", 1_000)
    state = begin(files := BatchFiles(tmp_path / "out.jsonl"), source, options)
    with echoing(redis, options.queue):
        reports = await run(files, state, valkey_url, window=300)
    assert (state.completed, max(report.unanswered for report in reports) <= 300) == (1_000, True)


class CancelsDuringSubmit(BatchQueue):
    """A queue in whose first call line 2 is cancelled; that line is in the queue afterwards."""

    def __init__(self, url: str, state: BatchState, files: BatchFiles) -> None:
        super().__init__(url, state, access=LONG_LIMIT)
        self._files = files

    async def submit(self, parts: Sequence[MemberParts], *, is_repeated: bool) -> None:
        self._files.request_cancel_of([2])
        await super().submit(parts, is_repeated=is_repeated)


async def test_lines_are_cancelled_whether_submitted_or_not(
    valkey_url: str, redis: Redis, options: ClientOptions, tmp_path: Path
) -> None:
    files = BatchFiles(tmp_path / "out.jsonl")
    state = begin(files, write_requests(tmp_path / "in.jsonl", 5), options)
    files.request_cancel_of([4])
    queue = CancelsDuringSubmit(valkey_url, state, files)
    work = BatchRun(files, state, queue, options=BatchOptions(), report=lambda _: None, report_outage=unexpected)
    running = asyncio.create_task(work.run())
    await wait_until_async(
        lambda: redis.exists(f"request-cancel:{state.batch}-2") and redis.zcard(options.queue) == 4,
        "the cancellation of line 2, and all lines but the fourth in the queue",
    )
    with echoing(redis, options.queue):
        await running
    await queue.close()
    assert [line["custom_id"] for line in lines(files.errors)] == ["c3"]
    assert lines(files.errors)[0]["error"]["code"] == "batch_cancelled"
    assert (state.outcome, len(lines(files.out))) == ("done", 4)
    assert not files.cancel_lines.exists()


async def test_a_cancelled_line_stays_cancelled_over_a_crash_and_a_torn_file(
    valkey_url: str, redis: Redis, options: ClientOptions, tmp_path: Path
) -> None:
    files = BatchFiles(tmp_path / "out.jsonl")
    state = begin(files, write_requests(tmp_path / "in.jsonl", 20), options)
    state.submitted_through = 10  # as after a crash: these may have been submitted
    files.write_state(state)
    files.cancel_lines.write_bytes(b"3\n12\n1")
    with echoing(redis, options.queue):
        await run(files, state, valkey_url)
    assert [line["custom_id"] for line in lines(files.errors)] == ["c2", "c11"]
    assert len(lines(files.out)) == 18


async def test_a_large_answer_is_collected_completely_and_deleted_with_its_result(
    valkey_url: str, redis: Redis, options: ClientOptions, tmp_path: Path
) -> None:
    source = write_requests(tmp_path / "in.jsonl", 1)
    state = begin(BatchFiles(tmp_path / "out.jsonl"), source, options)
    queue = BatchQueue(valkey_url, state, access=LONG_LIMIT)
    for name in ("first", "later"):
        redis.set(f"result-payload:{name}", b"large", ex=60)
        redis.lpush(state.results, f'{{"id":"x","status_code":200,"payload_ref":"result-payload:{name}"}}')
    assert [json.loads(text)["payload"] for text in await queue.collect(10)] == ["large", "large"]
    await queue.drop(1)
    assert not redis.exists("result-payload:first")
    assert redis.exists("result-payload:later")
    assert [json.loads(text)["payload"] for text in await queue.collect(10)] == ["large"]
    await queue.delete_results()
    await queue.close()


async def test_failed_lines_are_written_to_the_error_file(
    valkey_url: str, redis: Redis, options: ClientOptions, tmp_path: Path
) -> None:
    files = BatchFiles(tmp_path / "out.jsonl")
    source = write_requests(tmp_path / "in.jsonl", 2, fail=404)
    with source.open("a") as file:
        file.write('\n{"custom_id":"x"}\nnot json\n{"custom_id":"y","method":"POST","url":"/v1/c","body":{"a":1}}\n')
    with echoing(redis, options.queue):
        state = begin(files, source, options, is_checked=False)
        await run(files, state, valkey_url)
    assert [line["custom_id"] for line in lines(files.out)] == ["y"]
    errors = {line["custom_id"]: line for line in lines(files.errors)}
    assert errors["c0"]["response"]["status_code"] == 404
    assert errors["x"]["error"]["code"] == errors[""]["error"]["code"] == "invalid_request"
    assert "line 4: method" in errors["x"]["error"]["message"]
    assert (state.total, state.completed, state.failed) == (5, 1, 4)


async def test_an_interrupted_run_resumes_without_duplicates(
    valkey_url: str, redis: Redis, options: ClientOptions, tmp_path: Path
) -> None:
    """All at once: lines that are live, answered and waiting in the list, written but not dropped, torn."""
    files = BatchFiles(tmp_path / "out.jsonl")
    source = write_requests(tmp_path / "in.jsonl", 2_000)
    state = begin(files, source, options)
    first = asyncio.create_task(run(files, state, valkey_url, window=1_000))
    await wait_until_async(lambda: redis.zcard(options.queue) == 1_000, "1_000 lines in the queue")
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert answer(redis, options.queue, 300) == 300
    written = encode_result_line(state.batch, 1, "c0", Result(f"{state.batch}-1", 200, '{"n":0}'))[0]
    files.out.write_bytes(written + b'{"id":"batch_req_')
    second = begin(files, source, options)
    assert second.batch == state.batch
    with echoing(redis, options.queue) as taken:
        await run(files, second, valkey_url, window=1_000)
    assert sum(taken) == 1_700, "no line was submitted again"
    assert sorted(line["response"]["body"]["n"] for line in lines(files.out)) == list(range(2_000))


async def test_lines_that_were_journaled_and_not_submitted_are_submitted(
    valkey_url: str, redis: Redis, options: ClientOptions, tmp_path: Path
) -> None:
    files = BatchFiles(tmp_path / "out.jsonl")
    source = write_requests(tmp_path / "in.jsonl", 50)
    state = begin(files, source, options)
    state.submitted_through = 30
    files.write_state(state)
    with echoing(redis, options.queue) as taken:
        await run(files, begin(files, source, options), valkey_url)
    assert sum(taken) == len(lines(files.out)) == 50


async def test_a_duplicate_result_is_written_once(
    valkey_url: str, redis: Redis, options: ClientOptions, tmp_path: Path
) -> None:
    files = BatchFiles(tmp_path / "out.jsonl")
    source = write_requests(tmp_path / "in.jsonl", 2)
    state = begin(files, source, options)
    task = asyncio.create_task(run(files, state, valkey_url))
    await wait_until_async(lambda: redis.zcard(options.queue) == 2, "2 lines in the queue")
    for number in (1, 1, 2, 7):
        redis.lpush(state.results, encode_result(Result(f"{state.batch}-{number}", 200, "{}")))
    redis.lpush(state.results, "garbage", encode_result(Result("another-1", 200, "{}")))
    await task
    assert [line["custom_id"] for line in lines(files.out)] == ["c0", "c1"]


async def test_a_cancelled_batch_answers_every_line_with_an_error(
    valkey_url: str, redis: Redis, options: ClientOptions, tmp_path: Path
) -> None:
    files = BatchFiles(tmp_path / "out.jsonl")
    source = write_requests(tmp_path / "in.jsonl", 700)
    state = begin(files, source, options)
    task = asyncio.create_task(run(files, state, valkey_url, window=500, late_seconds=0.2))
    await wait_until_async(lambda: redis.zcard(options.queue) == 500, "500 lines in the queue")
    files.cancel.touch()
    last = f"request-cancel:{state.batch}-500"
    await wait_until_async(lambda: redis.exists(last), "all in flight to be cancelled")
    cancelled = error_result(f"{state.batch}-1", "", ErrorCode.CANCELLED, "cancelled")
    redis.lpush(state.results, encode_result(cancelled))
    await task
    errors = lines(files.errors)
    assert len(errors) == len({line["custom_id"] for line in errors}) == 700
    assert {line["error"]["code"] for line in errors} == {"batch_cancelled"}
    assert (state.outcome, files.cancel.exists()) == ("cancelled", False)


async def test_after_the_deadline_every_line_has_expired(
    valkey_url: str, redis: Redis, options: ClientOptions, tmp_path: Path
) -> None:
    files = BatchFiles(tmp_path / "out.jsonl")
    source = write_requests(tmp_path / "in.jsonl", 3)
    state = begin(files, source, options)
    state.deadline = int(time.time()) - 1
    await run(files, state, valkey_url)
    assert {line["error"]["code"] for line in lines(files.errors)} == {"batch_expired"}
    assert redis.zcard(options.queue) == 0


def test_only_one_process_runs_a_batch(tmp_path: Path) -> None:
    files = BatchFiles(tmp_path / "out.jsonl")
    assert not files.is_running()
    with files.locked():
        assert files.is_running()
        with pytest.raises(BatchConflict, match="another process"), files.locked():
            pass


def test_the_deadline_counts_from_the_given_clock(tmp_path: Path, options: ClientOptions) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {}}\n')
    state = begin_or_resume(
        BatchFiles(tmp_path / "out.jsonl"),
        source,
        queue=options.queue,
        results=options.results,
        deadline=timedelta(hours=1),
        tier="",
        tenant="",
        clock=lambda: 5_000_000_000.0,
    )
    assert state.deadline == 5_000_003_600


def test_files_of_another_batch_are_refused(tmp_path: Path, options: ClientOptions) -> None:
    source = write_requests(tmp_path / "in.jsonl", 3)
    files = BatchFiles(tmp_path / "out.jsonl")
    files.out.write_text("mine\n")
    with pytest.raises(BatchConflict, match="move it away"):
        begin(files, source, options)
    files.out.unlink()
    begin(files, source, options)
    write_requests(source, 4)
    with pytest.raises(
        BatchConflict, match=r"expected the unchanged input.*give another --out, or delete .*out.errors.jsonl"
    ):
        begin(files, source, options)
    files.state.write_text("{}")
    with pytest.raises(BatchConflict, match="expected a batch's state"):
        begin(files, source, options)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"{", "expected one JSON object, got JSON that is cut off"),
        (b"[]", "expected one JSON object, got a JSON array"),
        (b'{"custom_id":7}', "custom_id: expected a non-empty string, got a JSON number"),
        (b'{"url":"/v","body":{}}', "custom_id: expected a non-empty string, got nothing"),
        (b'{"custom_id":"a","method":"GET","url":"/v","body":{}}', "method"),
        (b'{"custom_id":"a","method":"POST","url":"v","body":{}}', "url"),
        (b'{"custom_id":"a","method":"POST","url":"/v"}', "body: expected a JSON object, got nothing"),
        (b'{"custom_id":"a","method":"POST","url":"/v","body":[]}', "got a JSON array"),
        (b'{"custom_id":"a","url":"/v","body":{}}', "method"),
        (b'{"custom_id":"a","method":"POST","url":"/v?x=1","body":{}}', "url"),
        (b'{"custom_id":"a","method":"POST","url":"https://h/v","body":{}}', "url"),
        (b'{"custom_id":"a","method":"POST","url":"/v","body":{"stream":true}}', "stream"),
    ],
)
def test_an_invalid_line_has_a_reason(text: bytes, reason: str) -> None:
    line = decode_line(7, text)
    assert isinstance(line, InvalidLine)
    assert reason in line.reason


def test_the_body_of_a_line_is_unchanged() -> None:
    line = decode_line(1, b'{"custom_id":"a","method":"POST","url":"/v","body":{ "x": 1.0 }}')
    assert line == BatchLine(1, "a", "/v", b'{ "x": 1.0 }')


def test_an_answer_of_any_content_is_one_line() -> None:
    for payload, body in [('{\n"a": [1,\r\n2]}\n', {"a": [1, 2]}), ("not\njson", "not\njson"), ("", "")]:
        text, is_answer = encode_result_line("b", 3, "c", Result("b-3", 200, payload))
        assert (text.count(b"\n"), is_answer) == (1, True)
        assert json.loads(text)["response"]["body"] == body
        read = decode_output("b", text)
        assert read is not None
        assert read[0] == 3
    assert decode_output("other", text) is None


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_error_code_has_a_name_in_the_error_file(code: ErrorCode) -> None:
    text, is_answer = encode_result_line("b", 1, "c", error_result("b-1", "", code, "why"))
    error = json.loads(text)["error"]
    assert (is_answer, error["message"]) == (False, "why")
    expected = {ErrorCode.DEADLINE_EXCEEDED: "batch_expired", ErrorCode.CANCELLED: "batch_cancelled"}
    assert error["code"] == expected.get(code, code.lower())


def test_answered_lines_are_kept_in_a_bit_set() -> None:
    answered = AnsweredLines()
    for number in (1, 8, 1_000_000):
        assert number not in answered
        answered.add(number)
        assert number in answered
    assert 2 not in answered
    assert 1_000_001 not in answered
    assert encode_error("b", 1, "c", "x", "y").endswith(b"}\n")
    assert msgspec.json.decode(encode_error("b", 1, "c", "x", "y"))["response"] is None


WRONG_FILES = {
    "duplicate": (
        b'{"custom_id":"a","method":"POST","url":"/v","body":{}}\n' * 2,
        "line 2: custom_id: expected a unique id, got 'a' of line 1",
    ),
    "UTF-16": ("\ufeff{}\n".encode("utf-16-le"), "UTF-16"),
    "UTF-16 without a mark": ("{}\n".encode("utf-16-be"), "UTF-16"),
    "UTF-32": ("{}\n".encode("utf-32"), "UTF-32"),
    "gzip": (gzip.compress(b"{}"), "gzip"),
    "many faults": (b"[]\n" * 25, "and 15 more"),
}


@pytest.mark.parametrize("name", WRONG_FILES)
def test_a_file_with_faults_is_refused_as_a_whole(tmp_path: Path, options: ClientOptions, name: str) -> None:
    content, expected = WRONG_FILES[name]
    source = tmp_path / "in.jsonl"
    source.write_bytes(content)
    files = BatchFiles(tmp_path / "out.jsonl")
    with pytest.raises(BatchConflict) as refused:
        begin(files, source, options)
    assert expected in str(refused.value)
    assert not files.state.exists()


def test_a_byte_order_mark_is_skipped(tmp_path: Path, options: ClientOptions) -> None:
    source = write_requests(tmp_path / "in.jsonl", 2)
    source.write_bytes(b"\xef\xbb\xbf" + source.read_bytes())
    state = begin(BatchFiles(tmp_path / "out.jsonl"), source, options)
    assert state.total == 2


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
@pytest.mark.parametrize("ending", [".lock", ".batch.new", ".batch", ".cancel", ".cancel-lines", ""])
def test_no_file_of_a_batch_is_opened_through_a_link(
    tmp_path: Path, options: ClientOptions, ending: str, link: Callable[[Path, Path], None]
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    link(tmp_path / f"out.jsonl{ending}", victim)
    files = BatchFiles(tmp_path / "out.jsonl")
    with pytest.raises(BatchConflict), files.locked():
        begin(files, write_requests(tmp_path / "in.jsonl", 1), options)
        files.request_cancel()
        files.request_cancel_of([1])
        BatchOutput(files, "b").close()
    assert victim.read_text() == "precious"


def test_files_are_private_and_the_lock_is_removed(tmp_path: Path, options: ClientOptions) -> None:
    files = BatchFiles(tmp_path / "out.jsonl")
    with files.locked():
        state = begin(files, write_requests(tmp_path / "in.jsonl", 1), options)
        BatchOutput(files, state.batch).close()
        made = [files.out, files.errors, files.state, tmp_path / "out.jsonl.lock"]
        assert {oct(path.stat().st_mode & 0o777) for path in made} == {"0o600"}
    assert not (tmp_path / "out.jsonl.lock").exists()


def test_a_damaged_line_is_reported_and_its_request_submitted_again(tmp_path: Path) -> None:
    files = BatchFiles(tmp_path / "out.jsonl")
    good = [encode_error("b", n, f"c{n}", "x", "why") for n in (1, 2, 3)]
    files.out.write_bytes(good[0] + good[1].replace(b"{", b"(") + good[2] + b'{"id":"batch_')
    output = BatchOutput(files, "b")
    output.close()
    assert output.damaged == [f"{files.out}:2"]
    assert [number in output.answered for number in (1, 2, 3)] == [True, False, True]
    assert files.out.read_bytes().endswith(good[2])


async def test_an_undecodable_result_is_stored_in_its_own_file(
    valkey_url: str, redis: Redis, options: ClientOptions, tmp_path: Path
) -> None:
    files = BatchFiles(tmp_path / "out.jsonl")
    with echoing(redis, options.queue):
        state = begin(files, write_requests(tmp_path / "in.jsonl", 3), options)
        redis.lpush(state.results, b'{"id":"x","payload":"\xff"}')
        await run(files, state, valkey_url)
    assert len(lines(files.out)) == 3
    assert state.undecodable == 1
    assert base64.b64decode(files.undecodable.read_bytes()) == b'{"id":"x","payload":"\xff"}'
