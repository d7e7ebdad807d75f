"""`async-processor top` live: in a real terminal, over a real queue with a real poller."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from handlers.demo.servers import Child, free_port
from handlers.demo.valkey import Valkey, find_valkey
from tests.servers.forked import LONG_REDIS_TIMEOUT
from tests.servers.terminal import ENTER_SCREEN, HIDE_CURSOR, LEAVE_SCREEN, SHOW_CURSOR, Terminal
from tests.waiting import wait_until

PROGRAM = str(Path(sys.executable).parent / "async-processor")
NEVER = ("--interval", "3600")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A queue whose poller is running; its gateway does not exist, so that each request fails and is retried."""
    with Valkey(find_valkey()) as server:
        gateway = f"http://127.0.0.1:{free_port()}"
        variables = {"REDIS_URL": server.url, **LONG_REDIS_TIMEOUT, "IGW_BASE_URL": gateway, "METRICS_PORT": "0"}
        with Child("poller", [PROGRAM, "poll"], variables), Redis.from_url(server.url, socket_timeout=60) as store:
            wait_until(lambda: store.hlen("{async-processor}:status:pollers"), "the poller on the board")
            yield server.url


def queue(url: str, request_id: str) -> None:
    """One request that fails at the gateway."""
    deadline = int(time.time()) + 3_600
    with Redis.from_url(url, socket_timeout=60) as store:
        body = {"id": request_id, "deadline": deadline, "payload": {"prompt": "x"}}
        store.zadd("request-sortedset", {json.dumps(body): deadline})


def assert_left_clean(terminal: Terminal) -> None:
    """The shell's screen, its cursor and its keys are back."""
    assert terminal.written.count(ENTER_SCREEN) == terminal.written.count(LEAVE_SCREEN) == 1
    assert terminal.written.rindex(SHOW_CURSOR) > terminal.written.rindex(HIDE_CURSOR)
    assert terminal.modes() == terminal.before
    assert "Traceback" not in terminal.written


def test_top_redraws_until_q_is_pressed(url: str) -> None:
    with Terminal(["top", "--interval", "0.2"], {"REDIS_URL": url, **LONG_REDIS_TIMEOUT}) as terminal:
        terminal.wait_for("1 poller ", "q quits", "request-sortedset", "0/64 slots")
        queue(url, "came-later")
        terminal.wait_for("came-later", "retry", "connect")
        terminal.press("q")
        assert terminal.end() == 0
        assert_left_clean(terminal)


def test_a_resize_and_a_key_redraw_at_once(url: str) -> None:
    """However long the interval: nothing but the change of size, or the key, can have drawn."""
    with Terminal(["top", *NEVER], {"REDIS_URL": url, **LONG_REDIS_TIMEOUT}) as terminal:
        terminal.wait_for("request-sortedset")
        terminal.resize(12, 60)
        wait_until(lambda: [len(line) for line in terminal.screen()] == [60] * 12, "the small screen")
        frames = terminal.written.count("q quits")
        terminal.press(" ")
        wait_until(lambda: terminal.written.count("q quits") > frames, "another frame")
        terminal.press("Q")
        assert terminal.end() == 0
        assert_left_clean(terminal)


def test_ctrl_c_restores_the_terminal(url: str) -> None:
    with Terminal(["top", *NEVER], {"REDIS_URL": url, **LONG_REDIS_TIMEOUT}) as terminal:
        terminal.wait_for("request-sortedset")
        terminal.press("\x03")
        assert terminal.end() == 130
        assert_left_clean(terminal)


def test_without_a_keyboard_top_works_and_sigterm_restores_the_terminal(url: str) -> None:
    with Terminal(["top", *NEVER], {"REDIS_URL": url, **LONG_REDIS_TIMEOUT}, has_keys=False) as terminal:
        terminal.wait_for("request-sortedset")
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.end() == 143
        assert_left_clean(terminal)


def test_top_waits_until_redis_is_back() -> None:
    port = free_port()
    with Terminal(["top", "--interval", "0.2"], {"REDIS_URL": f"redis://127.0.0.1:{port}"}) as terminal:
        terminal.wait_for("Redis does not answer; trying again")
        with Valkey(find_valkey(), port):
            terminal.wait_for("request-sortedset", "no poller was seen")
            terminal.press("q")
            assert terminal.end() == 0
        assert_left_clean(terminal)


def test_a_terminal_that_cannot_be_redrawn_gets_one_frame(url: str) -> None:
    with Terminal(["top"], {"REDIS_URL": url, **LONG_REDIS_TIMEOUT, "TERM": "dumb"}) as terminal:
        assert terminal.end() == 0
        assert "0 dead letters" in terminal.written
        assert "\x1b" not in terminal.written


def test_a_pipe_gets_one_frame_with_whole_names_also_with_forced_colours(url: str) -> None:
    done = subprocess.run(
        [PROGRAM, "top"],
        env={**os.environ, "REDIS_URL": url, **LONG_REDIS_TIMEOUT, "FORCE_COLOR": "1", "COLUMNS": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "request-sortedset" in done.stdout
    assert ENTER_SCREEN not in done.stdout
