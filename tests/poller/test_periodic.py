"""The loop: it ticks, survives a tick that raises, and ends when it is cancelled."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator

import pytest

from handlers.poller.periodic import PeriodicTask
from handlers.telemetry.logs import LogOptions, configure_logs, get_logger
from tests.waiting import wait_until_async


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What was logged."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    out = io.StringIO()
    configure_logs(LogOptions(form="json"), out)
    yield out
    root.handlers[:] = before
    root.setLevel(level)


class Ticks:
    """Raises what is scripted, then nothing."""

    def __init__(self, *raised: Exception) -> None:
        self.raised = list(raised)
        self.count = 0

    async def tick(self) -> None:
        self.count += 1
        if self.raised:
            raise self.raised.pop(0)


def task(ticks: Ticks) -> PeriodicTask:
    return PeriodicTask("scan", 0.001, ticks.tick, get_logger("test"), (ConnectionError,))


async def test_it_goes_on_after_a_tick_that_raised(lines: io.StringIO) -> None:
    ticks = Ticks(ConnectionResetError(), ConnectionResetError(), ValueError("a defect"))
    work = asyncio.create_task(task(ticks).run())
    await wait_until_async(lambda: ticks.count >= 6, "six ticks")
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    logged = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert [line["event"] for line in logged] == ["scan waits for its store", "scan failed"]
    assert logged[0]["error"] == "ConnectionResetError", "logged once a row, not at every try"
    assert "a defect" in logged[1]["error"]


async def test_cancellation_in_a_tick_ends_it() -> None:
    started = asyncio.Event()

    async def tick() -> None:
        started.set()
        await asyncio.Event().wait()

    work = asyncio.create_task(PeriodicTask("scan", 1.0, tick, get_logger("test"), ()).run())
    await started.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work


@pytest.mark.parametrize("seconds", [0, -1])
def test_an_interval_that_would_spin_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="scan"):
        PeriodicTask("scan", seconds, Ticks().tick, get_logger("test"), ())


@pytest.mark.parametrize("hidden", [ConnectionResetError, KeyError])
async def test_a_cancellation_that_a_library_turned_into_a_failure_ends_it_too(
    hidden: type[Exception],
) -> None:
    started = asyncio.Event()

    async def tick() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise hidden from None

    work = asyncio.create_task(PeriodicTask("scan", 1.0, tick, get_logger("test"), (ConnectionError,)).run())
    await started.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(work, 10)
