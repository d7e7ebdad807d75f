"""Waiting in tests: for an event, or, if time is the cause under test, for time to pass.

This is the only module in tests/ that sleeps; `tests/test_structure.py` checks that.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, overload

T = TypeVar("T")

LIMIT_SECONDS = 60.0
"""How long a test waits for an event; only a failing test waits that long, so a busy machine may be slow."""
CLOCK_SET_SECONDS = 60.0
"""How far the time of day may be set while a test runs. Two processes may also read it a little differently."""

_FIRST_PAUSE_SECONDS = 0.002
_LONGEST_PAUSE_SECONDS = 0.05


class NotInTime(AssertionError):
    """An expected event did not happen; the message names it, the time waited and the last value seen."""

    def __init__(self, what: str, timeout_seconds: float, last: object) -> None:
        super().__init__(f"waited {timeout_seconds:g} s for {what}; last seen: {last!r}")


def wait_until(predicate: Callable[[], T], what: str, timeout_seconds: float = LIMIT_SECONDS) -> T:
    """Call `predicate` until it returns a true value, and return that value. For tests without an event loop.

    Raises `NotInTime`, which names `what`. Exceptions of the predicate are not caught: return a false value for
    "not yet".
    """
    end = time.monotonic() + timeout_seconds
    pause_seconds = _FIRST_PAUSE_SECONDS
    while not (seen := predicate()):
        if time.monotonic() >= end:
            raise NotInTime(what, timeout_seconds, seen)
        time.sleep(pause_seconds)
        pause_seconds = min(pause_seconds * 2, _LONGEST_PAUSE_SECONDS)
    return seen


@overload
async def wait_until_async(
    predicate: Callable[[], Coroutine[Any, Any, T]], what: str, timeout_seconds: float = LIMIT_SECONDS
) -> T: ...
@overload
async def wait_until_async(predicate: Callable[[], T], what: str, timeout_seconds: float = LIMIT_SECONDS) -> T: ...
async def wait_until_async(predicate: Callable[[], Any], what: str, timeout_seconds: float = LIMIT_SECONDS) -> Any:
    """`wait_until` on an event loop; `predicate` may be a coroutine function, which is cancelled at the limit."""
    end = time.monotonic() + timeout_seconds
    pause_seconds = _FIRST_PAUSE_SECONDS
    seen: object = None
    try:
        while not (seen := await _ask(predicate, end)):
            if time.monotonic() >= end:
                raise NotInTime(what, timeout_seconds, seen)
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(pause_seconds * 2, _LONGEST_PAUSE_SECONDS)
    except TimeoutError:
        if time.monotonic() < end:
            raise  # the predicate's own
        raise NotInTime(what, timeout_seconds, seen) from None
    return seen


async def _ask(predicate: Callable[[], object], end: float) -> object:
    answer = predicate()
    if not inspect.isawaitable(answer):
        return answer
    async with asyncio.timeout(max(_LONGEST_PAUSE_SECONDS, end - time.monotonic())):
        return await answer


def elapse(seconds: float, why: str) -> None:
    """Let time pass if it is the cause under test (a lease that ends); `why` is for the reader."""
    assert why, "say what ends, starts or expires meanwhile"
    time.sleep(seconds)


async def elapse_async(seconds: float, why: str) -> None:
    """The same on an event loop."""
    assert why, "say what ends, starts or expires meanwhile"
    await asyncio.sleep(seconds)
