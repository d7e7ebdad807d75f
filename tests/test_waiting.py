"""Waiting ends in time, and a timeout names the expected event."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.waiting import NotInTime, wait_until, wait_until_async


def counting_to(last: int) -> Callable[[], int | None]:
    """Return None until the last call, then that number."""
    asked = iter(range(1, last + 1))
    return lambda: last if next(asked) == last else None


def test_the_awaited_value_is_returned() -> None:
    assert wait_until(counting_to(5), "five") == 5


async def test_the_awaited_value_is_returned_on_a_loop() -> None:
    assert await wait_until_async(counting_to(5), "five") == 5


async def test_the_predicate_may_be_a_coroutine() -> None:
    count = counting_to(3)

    async def ask() -> int | None:
        return count()

    assert await wait_until_async(ask, "three") == 3


def test_a_timeout_names_the_awaited_event() -> None:
    with pytest.raises(NotInTime, match=r"waited 0\.01 s for the moon; last seen: \[\]"):
        wait_until(list, "the moon", timeout_seconds=0.01)


async def test_a_coroutine_that_hangs_is_cut_off_and_named() -> None:
    with pytest.raises(NotInTime, match="the moon"):
        await wait_until_async(asyncio.Event().wait, "the moon", timeout_seconds=0.01)


async def test_a_timeout_of_the_inner_call_is_raised() -> None:
    async def ask() -> bool:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        await wait_until_async(ask, "the moon")
