"""An exit ends in its own time, whatever the libraries and peers behind it do."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading

import pytest

from handlers.cancellation import close_in_time
from handlers.telemetry.logs import get_logger
from handlers.telemetry.tracing import PROCESS_REQUEST, Tracing, TracingOptions


async def test_a_close_that_hangs_or_fails_does_not_prevent_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    closed: list[str] = []

    async def hanging() -> None:
        await asyncio.Event().wait()

    async def failing() -> None:
        raise OSError("gone")

    async def last() -> None:
        closed.append("last")

    with caplog.at_level(logging.WARNING):
        await close_in_time([hanging, failing, last], get_logger("test"), each_seconds=0.05)
    assert closed == ["last"]
    assert [record.message for record in caplog.records] == ["close abandoned", "close failed"]


async def test_a_silent_receiver_of_traces_leaves_nothing_that_an_exit_waits_for() -> None:
    before = set(threading.enumerate())  # of other tests, too
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        tracing = Tracing(TracingOptions(endpoint, "test", "0"))
        for number in range(3_000):
            with tracing.attempt(PROCESS_REQUEST, {}, f"r-{number}", {}):
                pass
        await close_in_time([tracing.aclose], get_logger("test"), each_seconds=0.05)
        ours = [thread for thread in threading.enumerate() if thread not in before]
        assert [thread.name for thread in ours if thread.name == "tracing-shutdown"]
        assert [thread.name for thread in ours if not thread.daemon] == []
