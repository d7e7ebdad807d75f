"""One queue of a poller on a real server, wired as in the app, with a function as handler."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from msgspec.structs import replace

from handlers.contract.request import Request
from handlers.contract.result import Result, answered_result, decode_result
from handlers.forward.forward import AttemptOptions
from handlers.forward.middleware.account import counted_calls
from handlers.forward.outcome import Answered, Outcome
from handlers.poller.ack_batcher import AckBatcher, OnSettled, Settlement
from handlers.poller.claimer import ClaimedQueue, Claimer, ClaimerOptions
from handlers.poller.settlement import RequestLimits, ResultRoute
from handlers.poller.worker import Worker, WorkerOptions
from handlers.redis_store.connection import Store
from handlers.redis_store.queue.queue import Claim, QueueOptions, RedisQueue
from handlers.redis_store.results.payloads import read_payload
from handlers.telemetry.logs import Logger, get_logger
from handlers.telemetry.metrics import Metrics, QueueMetrics

QUEUE, RESULTS, RETRIES = "request-sortedset", "result-list", "retry-sortedset"
IN_TIME = 60.0
"""Seconds after which an expected event has not happened."""

Handler = Callable[[Request], Awaitable[Outcome]]


async def answering(request: Request) -> Outcome:
    """A handler that answers at once."""
    return Answered(answered_result(request.id, request.request_token, 200, b"{}"))


def body(request_id: str, **fields: Any) -> bytes:
    """A request's body, due in an hour."""
    return json.dumps({"id": request_id, "deadline": time.time() + 3_600, "payload": {}, **fields}).encode()


class ListedBatcher(AckBatcher):
    """An ack batcher; `added` lists the settlements that it was given."""

    def __init__(self, queue: RedisQueue, log: Logger) -> None:
        super().__init__(queue, log)
        self.added: list[Settlement] = []

    def add(self, settlement: Settlement, on_settled: OnSettled) -> None:
        """List it too."""
        self.added.append(settlement)
        super().add(settlement, on_settled)


class Rig:
    """A queue, its ack batcher and worker; `settled` lists settlements and whether they took effect."""

    def __init__(
        self,
        store: Store,
        handler: Handler = answering,
        *,
        name: str = QUEUE,
        lease_seconds: float = 30.0,
        labels: dict[str, str] | None = None,
        withheld_labels: frozenset[str] = frozenset(),
        limits: RequestLimits | None = None,
        on_freed: Callable[[], None] = lambda: None,
        route: ResultRoute | None = None,
    ) -> None:
        self.store = store
        self.log: Logger = get_logger("test")
        self.queue = RedisQueue(store, name, QueueOptions(RETRIES, RESULTS, lease_seconds))
        self.clock: Callable[[], float] = self.queue.now
        self.process_metrics = Metrics()
        self.metrics: QueueMetrics = self.process_metrics.of_queue(name, name, "default")
        self.ack_batcher = ListedBatcher(self.queue, self.log)
        self.settled: list[tuple[Settlement, bool]] = []
        self.dispatched: list[Request] = []
        self.outcomes: list[tuple[Request, Outcome]] = []
        self.handler = handler
        self.on_freed = on_freed
        self.options = WorkerOptions(
            route=route or ResultRoute("", None, RESULTS),
            forward=counted_calls(self._forward, lambda _queue: self.metrics),
            metrics=self.metrics,
            labels=labels or {},
            withheld_labels=withheld_labels,
            limits=limits or RequestLimits(),
            max_request_bytes=100_000,
        )
        self.worker = Worker(
            self.ack_batcher,
            self.options,
            self.log,
            read_payload=partial(read_payload, store),
            clock=self._now,
            on_outcome=lambda request, outcome: self.outcomes.append((request, outcome)),
            on_settled=self._settled,
        )

    def change(self, **options: Any) -> None:
        """Change options of the worker."""
        self.options = replace(self.options, **options)
        self.worker.change(self.options)

    def start(self, claims: Sequence[Claim]) -> None:
        """Start claims; `on_freed` is called for each at its end."""
        self.worker.start(claims, self.on_freed)

    async def _forward(self, request: Request, options: AttemptOptions) -> Outcome:
        if options.on_sending is not None:
            options.on_sending()
        self.dispatched.append(request)
        return await self.handler(request)

    def _now(self) -> float:
        return self.clock()

    def _settled(self, settlement: Settlement, has_taken_effect: bool) -> None:
        self.settled.append((settlement, has_taken_effect))

    async def submit(self, *members: bytes, score: float | None = None) -> None:
        """Queue members, due in an hour or under this score."""
        at = time.time() + 3_600 if score is None else score
        await self.store.zadd(self.queue.name, dict.fromkeys(members, at))

    async def claimed(self, *members: bytes) -> list[Claim]:
        """Queue members and claim them."""
        await self.submit(*members)
        return await self.queue.claim(len(members))

    async def results(self) -> list[Result]:
        """The results so far, oldest first."""
        found: list[Any] = await self.store.lrange(RESULTS, 0, -1)
        return [decode_result(text) for text in reversed(found)]

    async def result_count(self) -> int:
        """The number of results so far."""
        return int(await self.store.llen(RESULTS))

    async def pending(self) -> int:
        """The number of pending requests."""
        return int(await self.store.zcard(self.queue.name))


@contextlib.asynccontextmanager
async def running(*loops: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run loops in the background; raises the error of one that ends."""
    tasks = [asyncio.create_task(loop) for loop in loops]
    try:
        yield
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def claimer_of(*rigs: Rig, slots: int, poll_interval_seconds: float = 0.005, **options: Any) -> Claimer:
    """A claimer for these queues."""
    claimer = Claimer(
        "default",
        ClaimerOptions(slots=slots, poll_interval_seconds=poll_interval_seconds, **options),
        rigs[0].log,
    )
    for rig in rigs:
        claimer.add(ClaimedQueue(rig.queue, rig.worker))
    return claimer
