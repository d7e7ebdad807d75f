"""A cancellation counts, also where what was awaited answered it with something else."""

from __future__ import annotations

import asyncio

import pytest

from handlers.cancellation import end_if_cancelled


async def swallowing(reached: asyncio.Event, *, error: Exception | None = None) -> str:
    """As the Redis library now and then does: a cancellation becomes a reply, or a connection error."""
    reached.set()
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        if error is not None:
            raise error from None
    return "a reply"


@pytest.mark.parametrize("error", [None, ConnectionResetError()])
async def test_a_cancellation_that_was_swallowed_still_ends_the_task(error: Exception | None) -> None:
    reached, went_on = asyncio.Event(), False

    async def work() -> None:
        nonlocal went_on
        try:
            await swallowing(reached, error=error)
        except ConnectionResetError:
            end_if_cancelled()
        end_if_cancelled()
        went_on = True

    task = asyncio.create_task(work())
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not went_on


async def test_a_timeout_that_was_swallowed_is_still_a_timeout() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await swallowing(asyncio.Event())
            end_if_cancelled()


async def test_who_was_not_cancelled_goes_on() -> None:
    end_if_cancelled()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()
    end_if_cancelled()  # the timeout is over
