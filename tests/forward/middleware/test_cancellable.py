"""A delivery that was cancelled ends, wherever it is; another submission of its id does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest

from handlers.contract.request import Request
from handlers.contract.result import ErrorCode, answered_result
from handlers.forward.forward import NO_OPTIONS, AttemptOptions
from handlers.forward.middleware import cancellable
from handlers.forward.middleware.cancellable import CancellableForward
from handlers.forward.outcome import Answered, Outcome
from handlers.telemetry.logs import get_logger
from tests.waiting import wait_until_async

ANSWERED = Answered(answered_result("a", "", 200, b"{}"))


class Bench:
    """A forward that answers on request, and the times of cancellations."""

    def __init__(self) -> None:
        self.cancelled_at: dict[str, float] = {}
        self.is_down = False
        self.lookups: list[list[str]] = []
        self.started: list[Request] = []
        self.ended: list[str] = []
        self.may_answer = asyncio.Event()
        self.answer: Callable[[Request], Awaitable[Outcome]] = self._answered
        self.forward = CancellableForward(
            self._attempt, self._look_up, (ConnectionError,), get_logger("test"), scan_seconds=0.001
        )

    async def _look_up(self, ids: Sequence[str]) -> list[float | None]:
        self.lookups.append(list(ids))
        if self.is_down:
            raise ConnectionError
        return [self.cancelled_at.get(one) for one in ids]

    async def _attempt(self, request: Request, _limits: AttemptOptions) -> Outcome:
        self.started.append(request)
        return await self.answer(request)

    async def _answered(self, request: Request) -> Outcome:
        try:
            await self.may_answer.wait()
        except asyncio.CancelledError:
            self.ended.append(request.id)
            raise
        return ANSWERED

    async def begin(self, request: Request) -> asyncio.Task[Outcome]:
        """Forward it, until it is in flight."""
        count = len(self.started)
        task = asyncio.create_task(self.forward.forward(request, NO_OPTIONS))
        await wait_until_async(lambda: len(self.started) > count, "the attempt")
        return task


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    await bench.forward.aclose()


def request(request_id: str = "a", created: int | None = 100) -> Request:
    return Request(id=request_id, deadline=4e9, payload=b"{}", created=created)


def code(outcome: Outcome) -> str:
    assert isinstance(outcome, Answered)
    return outcome.result.error_code


@pytest.mark.parametrize("created", [None, 99, 100])
async def test_a_request_cancelled_before_its_arrival_is_not_sent(bench: Bench, created: int | None) -> None:
    bench.cancelled_at["a"] = 100.5
    assert code(await bench.forward.forward(request(created=created), NO_OPTIONS)) == ErrorCode.CANCELLED
    assert bench.started == []


async def test_a_submission_after_the_cancellation_runs(bench: Bench) -> None:
    bench.cancelled_at["a"] = 100.5
    task = await bench.begin(request(created=101))
    await bench.forward.scan()
    bench.may_answer.set()
    assert await task == ANSWERED


async def test_a_cancelled_request_in_flight_ends_and_others_continue(bench: Bench) -> None:
    first, second = await bench.begin(request()), await bench.begin(request("b"))
    bench.cancelled_at["a"] = 100.5
    await bench.forward.start()
    assert code(await first) == ErrorCode.CANCELLED
    assert bench.ended == ["a"]
    bench.may_answer.set()
    assert await second == ANSWERED


async def test_all_requests_in_flight_are_looked_up_in_one_call(bench: Bench) -> None:
    tasks = [await bench.begin(request(name)) for name in "abc"]
    bench.lookups.clear()
    await bench.forward.scan()
    bench.may_answer.set()
    await asyncio.gather(*tasks)
    await bench.forward.scan()
    assert bench.lookups == [["a", "b", "c"]]


async def test_a_cancellation_for_another_reason_ends_the_task(bench: Bench) -> None:
    task = await bench.begin(request())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(("pause_seconds", "stops"), [(3_600.0, 1), (0.0, 2)])
async def test_an_ending_task_is_cancelled_again_only_after_a_while(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, pause_seconds: float, stops: int
) -> None:
    """It may be releasing a reservation, or publishing a result, which must not be cancelled."""
    monkeypatch.setattr(cancellable, "END_AGAIN_SECONDS", pause_seconds)
    ends: list[int] = []

    async def gives_back_slowly(_request: Request) -> Outcome:
        while not bench.may_answer.is_set():
            try:
                await bench.may_answer.wait()
            except asyncio.CancelledError:
                ends.append(1)
        raise asyncio.CancelledError

    async def publish() -> tuple[Outcome, int]:
        outcome = await bench.forward.forward(request(), NO_OPTIONS)
        walking = asyncio.current_task()
        assert walking is not None
        return outcome, walking.cancelling()

    bench.answer = gives_back_slowly
    task = asyncio.create_task(publish())
    await wait_until_async(lambda: bool(bench.started), "the attempt")
    bench.cancelled_at["a"] = 100.5
    await bench.forward.scan()
    await asyncio.sleep(0)
    await bench.forward.scan()
    await asyncio.sleep(0)
    assert len(ends) == stops
    bench.may_answer.set()
    outcome, still_cancelling = await task
    assert (code(outcome), still_cancelling) == (ErrorCode.CANCELLED, 0)


async def test_requests_are_answered_while_redis_is_down(bench: Bench) -> None:
    bench.is_down = True
    task = await bench.begin(request())
    await bench.forward.scan()
    bench.may_answer.set()
    assert await task == ANSWERED
