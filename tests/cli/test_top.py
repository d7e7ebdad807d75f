"""`async-processor top` on a real server: one frame, also without a terminal."""

from __future__ import annotations

import asyncio
import io
import time
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from redis.asyncio import Redis
from rich.console import Console

from handlers.cli import main
from handlers.cli.top import bar_line, frame
from handlers.demo.valkey import Valkey
from handlers.redis_store.admin.depths import QueueDepths
from handlers.redis_store.admin.status_board import StatusBoard
from handlers.status.overview import GateLine, Minute, Overview, QueueLine
from handlers.status.report import Failure
from handlers.telemetry.dependencies import GateState
from tests.servers.forked import LONG_REDIS_TIMEOUT


def environment(url: str, **variables: str) -> dict[str, str | None]:
    """The environment of the command; without COLUMNS unless it is given."""
    return {"REDIS_URL": url, **LONG_REDIS_TIMEOUT, "COLUMNS": None, **variables}


@pytest.fixture
async def url(store: Redis, valkey: Valkey) -> str:
    now = time.time()
    gate = {"gate_type": "redis", "budget": 0.0, "why_closed": "the budget is 0"}
    pool = {"pool": "default", "slots": 64, "in_flight": 3, "budget": 0.0, "gates": [gate]}
    report = {"at": now + 600, "host": "poller-1", "pools": [pool], "queues": []}
    failure = {
        "at": now,
        "id": "[red]r\x1b[1m",
        "queue": "request-sortedset",
        "attempt": 2,
        "reason": "dns",
    }
    encode = msgspec.json.encode
    board = StatusBoard(store, "poller-1")
    await board.post(encode(report), int(now // 60), {"request-sortedset answered": 5}, [encode(failure)])
    await store.zadd("request-sortedset", {b"x": now + 60, b"y": now + 70})
    return valkey.url


def test_a_pipe_gets_one_frame_with_everything_in_it(url: str) -> None:
    done = CliRunner().invoke(main, ["top"], env=environment(url))
    assert done.exit_code == 0, done.output
    for message in (
        "2 queued",
        "request-sortedset",
        "3/64 slots",
        "closed",
        "the budget is 0",
        "dns",
        "[red]r",
    ):
        assert message in done.output
    assert "\x1b" not in done.output


def test_a_frame_in_a_pipe_has_the_width_of_columns(url: str) -> None:
    """`watch` sets COLUMNS and reads a pipe."""
    done = CliRunner().invoke(main, ["top", "--once"], env=environment(url, COLUMNS="80"))
    assert max(len(line) for line in done.output.splitlines()) <= 80
    assert "CIRCUIT" in done.output
    done = CliRunner().invoke(main, ["top", "--once"], env=environment(url, COLUMNS="0"))
    assert "request-sortedset" in done.output


async def test_a_frame_names_the_queue_of_a_failure_if_there_are_several(
    url: str, store: Redis, tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("queues: [{queue_name: request-sortedset}, {queue_name: team-b}]\npools: [{id: default}]")
    await store.hset("team-b:dead", "d1", "{}")
    env = environment(url, CONFIG_FILE=str(file))
    done = await asyncio.to_thread(CliRunner().invoke, main, ["top", "--once"], env=env)
    [failure] = [line for line in done.output.splitlines() if "dns" in line]
    assert "request-sortedset" in failure
    [queue] = [line for line in done.output.splitlines() if line.startswith("team-b")]
    assert queue.split()[-3:] == ["1", "-", "-"]
    assert "1 dead letter  " in done.output


async def test_a_far_deadline_is_shown_in_days(url: str, store: Redis) -> None:
    await store.delete("request-sortedset")
    await store.zadd("request-sortedset", {b"x": time.time() + 30.5 * 86_400})
    done = await asyncio.to_thread(CliRunner().invoke, main, ["top"], env=environment(url))
    assert " 30d" in done.output


def test_an_unreachable_redis_is_reported() -> None:
    done = CliRunner().invoke(main, ["top", "--once"], env={"REDIS_URL": "redis://127.0.0.1:1"})
    assert done.exit_code == 4
    assert "Redis does not answer" in done.output


def test_the_highest_bar_is_full_and_small_values_are_visible() -> None:
    assert bar_line([0, 1, 1_000]) == " ▁█"


@pytest.mark.parametrize("width", [80, 200])
def test_headings_are_whole_and_a_gate_without_budget_is_closed(width: int) -> None:
    depths = QueueDepths(12_345, 64, 3, 2, 13.0)
    gate = GateState("local-max-concurrency", 0.0)
    now = Overview(
        at=1.0,
        queues=[QueueLine("a-queue-with-quite-a-long-name", depths, 47, 17, "default", "overflow-batch", "closed")],
        gates=[GateLine("pool default", gate)],
        failures=[Failure(1.0, "r1", "q", 0, "timeout")],
    )
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(frame(now, None))
    text = console.export_text()
    for heading in ("QUEUED", "IN FLIGHT", "AT GATE", "DEAD", "DUE IN", "CIRCUIT"):
        assert heading in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert "its budget is 0" in text
    assert "47 in flight  17 at a gate" in text
    failure = next(line for line in text.splitlines() if "timeout" in line)
    assert failure.split()[2] == "1", "attempts count from 1"
    assert "p50" in text


@pytest.mark.parametrize(("number", "words"), [(1, "1 result in"), (0, "0 results in"), (1_200, "1,200 results in")])
def test_results_of_the_last_minute_are_counted(number: int, words: str) -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    minutes = [Minute(number, 0, 0, None, None), Minute(0, 0, 0, None, None)]
    console.print(frame(Overview(at=1.0, minutes=minutes), None))
    assert f"\n{words} the last whole minute" in console.export_text()


def test_equal_failures_share_a_row_with_the_time_of_the_newest() -> None:
    malformed = [Failure(float(at), "", "q", 0, "INVALID_REQUEST", is_final=True) for at in range(44, 0, -1)]
    now = Overview(at=50.0, failures=[*malformed, Failure(0.5, "r1", "q", 0, "timeout")])
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(frame(now, None))
    text = console.export_text()
    [row] = [line for line in text.splitlines() if "INVALID_REQUEST" in line]
    assert row.split() == ["00:00:44", "failed", "1", "INVALID_REQUEST", "(no", "id)", "x44"]
    assert "r1" in text
