"""For how long a client retries a Redis that does not answer."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ConnectionError as NoConnection
from redis.exceptions import ResponseError

from handlers.client.errors import BrokerUnreachable
from handlers.client.redis_broker import StoreRetry
from handlers.redis_store.connection import NotReplicated


class Clock:
    """A clock that advances by each sleep."""

    def __init__(self) -> None:
        self.now = 0.0

    async def sleep(self, seconds: float) -> None:
        self.now += seconds

    def retry(self, seconds: float, jitter: float = 0.5) -> StoreRetry:
        return StoreRetry(seconds, clock=lambda: self.now, sleep=self.sleep, jitter=lambda: jitter)


class Failing:
    """A call that fails a number of times, and records its arguments."""

    def __init__(self, times: int, error: Exception) -> None:
        self.left = times
        self.error = error
        self.reported: list[bool] = []

    async def __call__(self, is_repeated: bool) -> str:
        self.reported.append(is_repeated)
        if self.left:
            self.left -= 1
            raise self.error
        return "answer"


@pytest.mark.parametrize("error", [NoConnection("gone"), NotReplicated(1, 0), TimeoutError()], ids=repr)
async def test_calls_continue_through_a_failover_marked_as_repeated(error: Exception) -> None:
    clock = Clock()
    retry = clock.retry(30)
    await retry.run(Failing(0, error))
    call = Failing(12, error)
    assert await retry.run(call) == "answer"
    assert call.reported == [False] + [True] * 12
    assert 5 < clock.now < 30


async def test_a_cancellation_raised_as_a_connection_error_ends_the_retries() -> None:
    reached, calls = asyncio.Event(), 0

    async def call(_is_repeated: bool) -> str:
        nonlocal calls
        calls += 1
        reached.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise NoConnection("cancelled") from None
        return "never"

    task = asyncio.create_task(Clock().retry(30).run(call))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 60)
    assert calls == 1


async def test_a_redis_that_never_answered_is_reported_soon() -> None:
    clock = Clock()
    with pytest.raises(BrokerUnreachable, match="gone"):
        await clock.retry(30).run(Failing(1_000, NoConnection("gone")))
    assert clock.now < 4


async def test_a_client_suspended_longer_than_redis_keeps_its_call_does_not_retry() -> None:
    """It could queue a request again that was answered in the meantime."""
    clock = Clock()

    async def stopped(_seconds: float) -> None:
        clock.now += 600

    retry = StoreRetry(100, clock=lambda: clock.now, sleep=stopped, jitter=lambda: 0.5)
    await retry.run(Failing(0, NoConnection("gone")))
    call = Failing(1, NoConnection("gone"))
    with pytest.raises(BrokerUnreachable, match="gone"):
        await retry.run(call)
    assert call.reported == [False]


async def test_a_permanent_error_is_raised_at_once() -> None:
    clock = Clock()
    call = Failing(1_000, ResponseError("WRONGTYPE"))
    with pytest.raises(BrokerUnreachable, match="WRONGTYPE"):
        await clock.retry(30).run(call)
    assert (len(call.reported), clock.now) == (1, 0.0)


@given(seconds=st.floats(0, 120), jitter=st.floats(0, 0.999))
async def test_retries_end_at_the_time_limit_and_are_at_most_a_few_per_second(seconds: float, jitter: float) -> None:
    clock = Clock()
    retry = clock.retry(seconds, jitter)
    await retry.run(Failing(0, NoConnection()))
    call = Failing(100_000, NoConnection("gone"))
    with pytest.raises(BrokerUnreachable):
        await retry.run(call)
    assert seconds <= clock.now <= seconds + 1.5
    assert len(call.reported) <= 8 + 2 * seconds
