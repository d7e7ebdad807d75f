"""`async-processor top` on a real server: one frame, also where the output is no terminal."""

from __future__ import annotations

import time

import msgspec
import pytest
from click.testing import CliRunner
from redis.asyncio import Redis

from handlers.cli import main
from handlers.cli.top_view import bar_line
from handlers.demo.valkey import Valkey
from handlers.redis_store.admin.status_board import StatusBoard


@pytest.fixture
async def url(store: Redis, valkey: Valkey) -> str:
    now = time.time()
    gate = {"gate_type": "redis", "budget": 0.0, "why_closed": "the budget is 0"}
    pool = {"pool": "default", "slots": 64, "in_flight": 3, "budget": 0.0, "gates": [gate]}
    report = {"at": now, "host": "poller-1", "pools": [pool], "queues": []}
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
    done = CliRunner().invoke(main, ["top"], env={"REDIS_URL": url, "COLUMNS": "40"})
    assert done.exit_code == 0, done.output
    for said in ("2 queued", "request-sortedset", "3/64 slots", "closed", "the budget is 0", "dns", "[red]r"):
        assert said in done.output
    assert "\x1b" not in done.output


def test_without_redis_it_says_so() -> None:
    done = CliRunner().invoke(main, ["top", "--once"], env={"REDIS_URL": "redis://127.0.0.1:1"})
    assert done.exit_code == 4
    assert "Redis does not answer" in done.output


def test_the_highest_bar_is_full_and_what_is_not_nothing_shows() -> None:
    assert bar_line([0, 1, 1_000]) == " ▁█"
