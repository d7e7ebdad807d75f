"""Build, change and retire the queues of one Redis server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final

import msgspec

from handlers.byte_budget import ByteBudget
from handlers.clock import FollowedClock
from handlers.forward.middleware.breaker import Circuit
from handlers.gates.allowance import ProcessShare
from handlers.gates.gate import Gate
from handlers.poller.ack_batcher import WRITE_SECONDS, AckBatcher, FinishedLog
from handlers.poller.claimer import ClaimedQueue, Claimer
from handlers.poller.maintenance import (
    CANCEL_SECONDS,
    DEPTHS_SECONDS,
    Canceller,
    DepthWatch,
    LeaseRenewal,
    PeriodicTask,
    QueueParts,
    QueueTable,
    Reclaimer,
)
from handlers.poller.poller import Poller, Runs
from handlers.poller.pool_share import SHARE_SECONDS, PoolShares
from handlers.poller.queue_watch import QueueWatch
from handlers.poller.worker import Worker, WorkerOptions
from handlers.redis_store.admin.depths import existing, wake_signals
from handlers.redis_store.admin.status_board import FinishedLimits, FinishedRecords
from handlers.redis_store.connection import STORE_FAILURES, Store
from handlers.redis_store.opening import open_queue, open_retries
from handlers.redis_store.queue.cancellations import ForeignCancellations
from handlers.redis_store.queue.queue import QueueOptions
from handlers.redis_store.results.payloads import read_payload
from handlers.settings.settings import Settings
from handlers.status.collect import POST_SECONDS, Tally, status_watch
from handlers.telemetry.logs import Logger
from handlers.wiring.credentials import redis_options

_BATCH: Final = 1_000
_MOST_EAGER: Final = 64
"""If there are more queues, a queue without gates is dormant: its parts are built when it first has requests."""
_RECLAIM_SECONDS_PER_QUEUE: Final = 0.0005
"""Lower bound of the reclaim interval, per queue: 5 s for 10,000 queues."""


class SharedParts(msgspec.Struct, frozen=True):
    """Parts of a process that all its queues share."""

    log: Logger
    clock: FollowedClock
    budget: ByteBudget
    tally: Tally
    poller: Poller
    claimers: Mapping[str, Claimer]


class QueuePlan(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration of one queue.

    `gates` are the queue's own; `share` returns this process's share of their budget.
    """

    claimer: Claimer
    worker_options: Callable[[Store], WorkerOptions]
    labels: Mapping[str, str]
    gates: Sequence[Gate]
    share: Callable[[PoolShares], Callable[[], ProcessShare]]
    circuit: Circuit


class ServedQueue(msgspec.Struct):
    """A queue whose parts are built."""

    plan: QueuePlan
    parts: QueueParts
    claimed: ClaimedQueue


def store_identity(settings: Settings) -> tuple[object, ...]:
    """The settings that a `RedisQueues` cannot change.

    If one of them changes, a new `RedisQueues` replaces it.
    """
    return (settings.redis_url, settings.retry_queue_name, settings.result_queue_name, settings.poll_interval_seconds)


class RedisQueues:
    """Connection, retry set, periodic tasks and queues of one Redis server."""

    def __init__(self, settings: Settings, shared: SharedParts, redis: Store) -> None:
        self.identity = store_identity(settings)
        self.redis = redis
        self._settings = settings
        self._shared = shared
        self._queue_options = _queue_options(settings)
        self._retries = open_retries(self.redis, settings.queues[0].queue_name, self._queue_options)
        self.shares = PoolShares(self.redis, shared.log)
        self.watch = self._queue_watch()
        self._table = QueueTable()
        self._served: dict[str, ServedQueue] = {}
        self._plans: dict[str, QueuePlan] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self._finished = _finished_log(settings, self.redis, shared.clock)
        self._foreign = ForeignCancellations(self.redis)
        self._status = status_watch(self.redis, shared.tally, shared.claimers)
        env = settings.env
        reclaimer = Reclaimer(
            self.redis, self._table, shared.log, max_deliveries=env.max_deaths, cluster=self._queue_options.cluster
        )
        self._reclaim = self._task("reclaimer", env.reclaim_seconds, reclaimer.tick, is_vital=True)
        self._sweep = self._task("sweep of cancellations", CANCEL_SECONDS, self._sweep_foreign)
        self._parts: list[Runs] = [self.watch, self._reclaim, self._sweep, *self._tasks()]
        for part in self._parts:
            shared.poller.add(part)

    def _tasks(self) -> list[PeriodicTask]:
        """Periodic tasks whose interval does not depend on the number of queues."""
        table, shared, env = self._table, self._shared, self._settings.env
        leases = LeaseRenewal(table, env.lease_seconds)
        canceller = Canceller(
            self.redis,
            table,
            self._retries,
            shared.log,
            now=shared.clock.now,
            is_stopping=lambda: shared.poller.is_stopping,
            is_empty=self._are_empty,
        )
        depths = DepthWatch(self.redis, table, self._queue_options)
        tasks = [
            self._task("heartbeat", env.heartbeat_seconds, leases.tick, is_vital=True),
            self._task("canceller", CANCEL_SECONDS, canceller.tick),
            self._task("depths", DEPTHS_SECONDS, depths.tick),
            self._task("pool sharing", SHARE_SECONDS, self._share_pools),
            self._task("status board", POST_SECONDS, self._status.tick),
        ]
        if self._finished is not None:
            tasks.append(self._task("finished records", WRITE_SECONDS, self._finished.tick))
        return tasks

    def _task(
        self, name: str, seconds: float, tick: Callable[[], Awaitable[object]], *, is_vital: bool = False
    ) -> PeriodicTask:
        return PeriodicTask(name, seconds, tick, self._shared.log, STORE_FAILURES, is_vital=is_vital)

    def _queue_watch(self) -> QueueWatch:
        return QueueWatch(
            partial(existing, self.redis),
            self._shared.log,
            poll_interval_seconds=self._settings.poll_interval_seconds,
            retry_keys=self._retries.work_keys,
            promote=self._promote,
            signals=partial(wake_signals, self.redis),
        )

    async def _promote(self) -> int:
        moved = some = await self._retries.promote(_BATCH)
        while some == _BATCH:
            some = await self._retries.promote(_BATCH)
            moved += some
        return moved

    async def _sweep_foreign(self) -> None:
        """Scan for cancellations by other projects' producers, unless nothing is queued."""
        if not self._are_empty():
            await self._foreign.sweep()

    def _are_empty(self) -> bool:
        """Whether queues and retry set have been empty for a while."""
        return self.watch.are_empty([*self._table.names, *self._retries.work_keys])

    async def _share_pools(self) -> None:
        await self.shares.tick({name: one.in_flight for name, one in self._shared.claimers.items()})

    @property
    def is_settling(self) -> bool:
        """Whether Redis records settlements."""
        return not any(batcher.is_waiting_for_store for batcher in self._shared.poller.ack_batchers)

    def apply(self, default_queue: str, plans: Mapping[str, QueuePlan], hand_back: set[str]) -> None:
        """Serve exactly the queues in `plans`: add, change and retire queues.

        The gates of the queues in `hand_back` have changed, so their unsent requests return to the queue.
        """
        self._retries.default_queue = default_queue
        previous, self._plans = self._plans, dict(plans)
        for name in previous.keys() - plans.keys():
            self._retire(name, previous[name])
        for name, plan in plans.items():
            if name in self._served:
                self._change(name, plan, is_handed_back=name in hand_back)
            elif plan.gates or len(plans) <= _MOST_EAGER:
                self._leave_pool(name, previous)
                self._build(name)
            else:
                self._leave_pool(name, previous)
                self._table.add_dormant(name, partial(self._build, name))
                plan.claimer.add_dormant(name, partial(self._build, name))
        least_seconds = _RECLAIM_SECONDS_PER_QUEUE * len(plans)
        self._reclaim.interval_seconds = max(self._settings.env.reclaim_seconds, least_seconds)
        self._sweep.interval_seconds = max(CANCEL_SECONDS, least_seconds)

    def _leave_pool(self, name: str, previous: Mapping[str, QueuePlan]) -> None:
        """Remove a dormant queue from its pool."""
        if name in previous:
            previous[name].claimer.remove(name)

    def _build(self, name: str) -> None:
        plan, shared = self._plans[name], self._shared
        queue = open_queue(self.redis, name, self._queue_options, shared.clock)
        ack_batcher = AckBatcher(queue, shared.log)
        worker = Worker(
            ack_batcher,
            plan.worker_options(self.redis),
            shared.log,
            clock=shared.clock.now,
            budget=shared.budget,
            read_payload=partial(read_payload, self.redis),
            on_outcome=shared.tally.note,
            on_settled=None if self._finished is None else self._finished.note,
        )
        served = ServedQueue(plan, QueueParts(queue, worker), ClaimedQueue(queue, worker))
        self._served[name] = served
        self._table.add(served.parts)
        shared.poller.add_queue(worker, ack_batcher)
        self._change_claims(served)
        plan.claimer.add(served.claimed)

    def _change(self, name: str, plan: QueuePlan, *, is_handed_back: bool) -> None:
        served = self._served[name]
        worker, previous = served.parts.worker, served.plan
        served.plan = plan
        worker.change(plan.worker_options(self.redis))
        if name in self._table.retiring:
            self._table.add(served.parts)
            worker.revive()
        if is_handed_back:
            worker.hand_back_unsent()
        self._change_claims(served)
        if plan.claimer is not previous.claimer:
            previous.claimer.remove(name)
        plan.claimer.add(served.claimed)

    def _change_claims(self, served: ServedQueue) -> None:
        plan = served.plan
        served.claimed.change(
            labels=plan.labels,
            gates=plan.gates,
            slots=plan.claimer.options.slots,
            share=plan.share(self.shares),
            circuit=plan.circuit,
        )

    def _retire(self, name: str, plan: QueuePlan) -> None:
        """Stop claiming from a queue. Requests in flight are finished."""
        plan.claimer.remove(name)
        parts = self._table.retire(name)
        if parts is not None:
            parts.worker.retire()
            retiring = asyncio.create_task(self._retired(name, parts))
            self._retiring.add(retiring)
            retiring.add_done_callback(self._retiring.discard)

    async def _retired(self, name: str, parts: QueueParts) -> None:
        await parts.worker.idle()
        if self._table.retiring.get(name) is not parts:
            return  # it has been configured again
        del self._table.retiring[name]
        del self._served[name]
        await self._shared.poller.remove_queue(parts.worker)
        self._shared.log.info("queue drained", queue=name)

    def retire(self) -> None:
        """Retire all queues, since those of another Redis server replace them."""
        self.apply(self._retries.default_queue, {}, set())

    async def ended(self) -> None:
        """End the periodic tasks once all retired queues are idle.

        The caller closes the connection.
        """
        while self._retiring:
            await asyncio.wait(self._retiring)
        for part in self._parts:
            await self._shared.poller.remove(part)
        await self.leave()

    async def leave(self) -> None:
        """Leave shared pools and status board; write the last finished records."""
        await self.shares.leave()
        with contextlib.suppress(*STORE_FAILURES):
            await self._status.leave()
            if self._finished is not None:
                await self._finished.tick()


def _queue_options(settings: Settings) -> QueueOptions:
    env = settings.env
    return QueueOptions(
        retry_queue_name=settings.retry_queue_name,
        default_result_queue_name=settings.result_queue_name,
        lease_seconds=env.lease_seconds,
        cluster=redis_options(settings).is_cluster,
        wait_replicas=env.wait_replicas,
        # Half of the timeout, so that `WAIT` ends before the connection is closed.
        wait_timeout_ms=max(1, round(500 * env.redis_timeout_seconds)),
    )


def _finished_log(settings: Settings, redis: Store, clock: FollowedClock) -> FinishedLog | None:
    env = settings.env
    if not env.finished_records:
        return None
    limits = FinishedLimits(env.finished_records, env.finished_records_bytes, env.finished_records_seconds)
    return FinishedLog(FinishedRecords(redis, limits), clock.now)
