"""The poller's wiring: settings in, a finished poller out."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from functools import cached_property, partial

from handlers.clock import FollowedClock
from handlers.forward.middleware.guarded import Guards, guarded_dispatch
from handlers.forward.route import Routes
from handlers.gates.allowance import Allowance, all_shares
from handlers.gates.gate import Gate
from handlers.gates.labels import band_of
from handlers.poller.ack_batcher import WRITE_SECONDS, AckBatcher, FinishedLog, Settlement
from handlers.poller.byte_budget import ByteBudget
from handlers.poller.claimer import Claimer, Source
from handlers.poller.duplicates import Duplicates
from handlers.poller.maintenance import (
    CANCEL_SECONDS,
    DEPTHS_SECONDS,
    Canceller,
    DepthWatch,
    LeaseKeeper,
    PeriodicTask,
    QueueParts,
    QueueTable,
    Reclaimer,
)
from handlers.poller.poller import Poller
from handlers.poller.pool_share import SHARE_SECONDS, SharedPools
from handlers.poller.priority import LaneOptions, build_merge, check_objectives
from handlers.poller.queue_watch import QueueWatch
from handlers.poller.settlement import RequestLimits, ResultRoute
from handlers.poller.worker import Worker
from handlers.redis_store.admin.finished import FinishedLimits, FinishedRecords
from handlers.redis_store.connection import (
    STORE_FAILURES,
    Store,
    connect,
    connections_in_use,
    durability_warnings,
)
from handlers.redis_store.faults import explained
from handlers.redis_store.keys import ReservedNames
from handlers.redis_store.opening import open_queue, open_retries
from handlers.redis_store.queue.cancellations import ForeignCancellations
from handlers.redis_store.queue.payloads import read_payload
from handlers.redis_store.queue.presence import existing, wake_signals
from handlers.redis_store.queue.queue import QueueOptions
from handlers.settings.config_file import PoolEntry, QueueEntry
from handlers.settings.settings import Settings, memory_warnings
from handlers.status.collect import POST_SECONDS, Tally, status_watch
from handlers.telemetry.dependencies import SkewWatch
from handlers.telemetry.logs import get_logger
from handlers.telemetry.metrics import CONTENT_TYPE, Metrics, QueueMetrics
from handlers.telemetry.pages import Page, PagesServer
from handlers.wiring.closing import Close, close_in_time
from handlers.wiring.credentials import redis_options
from handlers.wiring.forward_stack import guards_of, poller_client, poller_dispatch
from handlers.wiring.gates import ProcessGates
from handlers.wiring.metrics import tracing_of
from handlers.wiring.reserved_names import all_gate_params, reserved_names, withheld_labels

_BATCH = 1_000
_MOST_EAGER = 64
"""With more queues than this, the parts of a queue without gates are built when it first has requests."""
_RECLAIM_SECONDS_PER_QUEUE = 0.0005
"""Least interval of the scans for dead owners, per queue: 5 s for 10,000."""


class PollerApp:
    """A poller with its connections; `run` ends when it is stopped and drained."""

    def __init__(self, settings: Settings, before: PollerApp | None = None) -> None:
        """`before` is the one whose place this one may take; its counters, circuits and retry budgets go on here."""
        self._settings = settings
        self._log = get_logger("poller")
        self.has_begun = False  # whether it may have claimed requests
        self._redis = connect(redis_options(settings))
        self._client = poller_client(settings)
        self._tracing = tracing_of(settings)
        self._guards: Guards = before._guards if before else guards_of(settings, self._log)
        self._budget: ByteBudget = before._budget if before else ByteBudget(settings.max_in_flight_bytes)
        self._clock: FollowedClock = before._clock if before else FollowedClock()
        self._dispatch = poller_dispatch(settings, self._client, self._tracing, self._clock.now)
        default_queue = settings.queues[0].queue_name
        self._retries = open_retries(self._redis, default_queue, self._queue_options())
        self._metrics: Metrics = Metrics(previous=before._metrics if before else None)
        self._tally = Tally(clock=self._clock.now, tenant_field=settings.fairness_attribute)
        self._gates = ProcessGates(settings, redis_options(settings))
        self._pool_gates: dict[str, list[Gate]] = {}
        self._placed_gates: dict[tuple[str, str], Gate] = {}
        self._is_refused: Callable[[], bool] = lambda: False
        self._lanes: dict[str, LaneOptions] = {}
        self._tasks: list[PeriodicTask] = []
        self._shared = SharedPools(self._redis, self._log)
        self._finished = self._finished_log()
        self._watch = self._queue_watch()
        self._foreign = ForeignCancellations(self._redis)
        self._table = QueueTable()
        self._reserved = _reserved(settings)
        self._withheld_labels = withheld_labels(settings)
        self._pools = self._build_pools()
        self._ack_batchers: list[AckBatcher] = []
        self.poller = self._poller()
        for number, entry in enumerate(settings.queues):
            self._add(number, entry)
        self._maintain()
        self._tasks.append(self._clock_watch())
        if self._shared.is_used:
            self._tasks.append(self._task("pool sharing", SHARE_SECONDS, self._shared.tick))
        self._status = status_watch(self._redis, self._tally, self._pools, self._pool_gates)
        self._tasks.append(self._task("status board", POST_SECONDS, self._status.tick))
        self._watch_metrics()
        self._pages: PagesServer | None = PagesServer(
            self._page_table(), settings.env.host, settings.env.metrics_port
        )

    def _poller(self) -> Poller:
        used = {entry.worker_pool_id for entry in self._settings.queues}
        pools = [pool for pool_id, pool in self._pools.items() if pool_id in used]
        grace_seconds = self._settings.env.shutdown_grace_seconds
        return Poller(pools, self._watch, self._tasks, self._log, grace_seconds=grace_seconds)

    def _queue_watch(self) -> QueueWatch:
        async def promote() -> int:
            moved = some = await self._retries.promote(_BATCH)
            while some == _BATCH:
                some = await self._retries.promote(_BATCH)
                moved += some
            return moved

        return QueueWatch(
            partial(existing, self._redis),
            self._log,
            poll_interval_seconds=self._settings.poll_interval_seconds,
            retry_keys=self._retries.work_keys,
            promote=promote,
            signals=partial(wake_signals, self._redis),
        )

    def _maintain(self) -> None:
        """Add the periodic tasks that serve all queues."""
        env, redis, table = self._settings.env, self._redis, self._table
        is_cluster = redis_options(self._settings).is_cluster
        leases = LeaseKeeper(table, env.lease_seconds)
        reclaimer = Reclaimer(redis, table, self._log, max_deaths=env.max_deaths, cluster=is_cluster)
        canceller = Canceller(
            redis,
            table,
            self._retries,
            self._log,
            now=self._clock.now,
            is_stopping=lambda: self.poller.is_stopping,
        )
        depths = DepthWatch(redis, table, self._queue_options())
        least_seconds = _RECLAIM_SECONDS_PER_QUEUE * len(self._settings.queues)
        self._tasks += [
            self._task("heartbeat", env.heartbeat_seconds, leases.tick),
            self._task("reclaimer", max(env.reclaim_seconds, least_seconds), reclaimer.tick),
            self._task("canceller", CANCEL_SECONDS, canceller.tick),
            self._task("sweep of cancellations", max(CANCEL_SECONDS, least_seconds), self._sweep),
            self._task("depths", DEPTHS_SECONDS, depths.tick),
        ]

    async def _sweep(self) -> None:
        """Scan for cancellations of foreign producers, unless nothing is queued."""
        keys = [*self._table.names, *self._retries.work_keys]
        if not self._watch.is_silent or await existing(self._redis, keys):
            await self._foreign.sweep()

    def _watch_metrics(self) -> None:
        self._metrics.watch_circuits(self._guards.open_circuits)
        self._metrics.watch_ready(lambda: self._ready().status_code == 200)
        self._metrics.watch_claims(lambda: bool(self._claim_refusal()))
        self._metrics.watch_connections("redis", partial(connections_in_use, self._redis))
        peer = "handler" if self._settings.env.handler_url else "gateway"
        self._metrics.watch_connections(peer, lambda: self._client.in_use)

    def take_over_pages(self, before: PollerApp) -> None:
        """Show this poller's pages where `before` showed its own: it is on its way out."""
        if before._pages is not None:
            before._pages.show(self._page_table())
            self._pages, before._pages = before._pages, None

    def show_refusals(self, is_refused: Callable[[], bool]) -> None:
        """Say on the pages while a changed configuration is refused."""
        self._is_refused = is_refused
        self._metrics.watch_refusals(is_refused)

    def take_over(self, before: PollerApp) -> None:
        """Go on with what `before` has in flight, once it claims no more: one set of limits holds for both."""
        for pool_id, pool in self._pools.items():
            if pool_id in before._pools:
                pool.take_over(before._pools[pool_id])
        for place, gate in self._placed_gates.items():
            if place in before._placed_gates:
                gate.take_over(before._placed_gates[place])
        if self._settings.redis_url == before._settings.redis_url:
            self._shared.take_over(before._shared)
        before._status.hand_over(self._status)

    def _page_table(self) -> dict[str, Callable[[], Page]]:
        return {
            "/healthz": lambda: Page(200, b"ok\n"),
            "/readyz": self._ready,
            "/metrics": lambda: Page(200, self._metrics.render(), CONTENT_TYPE),
        }

    def _claim_refusal(self) -> str:
        return next((pool.refusal for pool in self._pools.values() if pool.refusal), "")

    def _ready(self) -> Page:
        """Ready is who claims and settles: not while stopping, and not while Redis does neither."""
        if self.poller.is_stopping:
            return Page(503, b"stopping\n")
        if refusal := self._claim_refusal():
            return Page(503, f"claiming is refused: {refusal}\n".encode())
        is_claiming = not any(pool.is_waiting_for_store for pool in self._pools.values())
        is_settling = not any(ack_batcher.is_waiting_for_store for ack_batcher in self._ack_batchers)
        if not (is_claiming and is_settling):
            return Page(503, b"waiting for redis\n")
        return Page(
            200, b"ready, but a changed configuration is refused\n" if self._is_refused() else b"ready\n"
        )

    def _build_pools(self) -> dict[str, Claimer]:
        settings = self._settings
        pools = {}
        for number, entry in enumerate(settings.pools):
            setting = f"pools[{number}]"
            check_objectives(entry.lane_objectives, f"{setting}.lane_objectives")
            merge = build_merge(
                entry.merge_policy, f"{setting}.merge_policy", ageing_seconds=entry.ageing_seconds
            )
            self._pool_gates[entry.id] = self._gates.build(
                entry.gate_type, entry.gate_params, setting, entry.id
            )
            self._lanes[entry.id] = LaneOptions(
                entry.lane_objectives, entry.priority_header, settings.tier_label
            )
            pools[entry.id] = Claimer(
                entry.id,
                entry.workers or settings.env.workers,
                settings.poll_interval_seconds,
                self._log,
                gates=self._pool_gates[entry.id],
                merge=merge,
                lane_of=partial(band_of, tier_label=settings.tier_label),
                part=self._shared.part_of_pool(entry.id, self._pool_gates[entry.id], is_shared=entry.shared),
                watch=self._watch,
            )
            self._shared.watch(pools[entry.id])
            for gate in self._pool_gates[entry.id]:
                self._placed_gates["pool", entry.id] = gate
                self._metrics.watch_gate("", "", entry.id, gate.state)
            self._metrics.watch(partial(self._show_pool, pools[entry.id]))
        return pools

    def _pool_entry(self, pool_id: str) -> PoolEntry:
        return next(entry for entry in self._settings.pools if entry.id == pool_id)

    def _show_pool(self, pool: Claimer) -> None:
        self._metrics.pool(pool.pool_id, pool.slots, pool.budget)

    def _add(self, number: int, entry: QueueEntry) -> None:
        """Build the parts of a queue, or have them built once it has requests if there are many queues."""
        pool = self._pools[entry.worker_pool_id]
        gates = self._gates.build(
            entry.gate_type, entry.gate_params, f"queues[{number}]", entry.worker_pool_id
        )
        build = partial(self._build, entry, pool, gates)
        if gates or len(self._settings.queues) <= _MOST_EAGER:
            build()
        else:
            self._table.add_dormant(entry.queue_name, build)
            pool.add_dormant(entry.queue_name, build)

    @cached_property
    def _routes(self) -> Routes:
        return self._settings.routes  # built once: it grows with the number of queues

    def _build(self, entry: QueueEntry, pool: Claimer, gates: list[Gate]) -> None:
        queue = open_queue(self._redis, entry.queue_name, self._queue_options(), self._clock)
        ack_batcher = AckBatcher(queue, self._log)
        guard = self._guards.of(self._routes.of(entry.queue_name).base_url)
        labels = (entry.id or entry.queue_name, entry.queue_name, pool.pool_id)
        metrics = self._metrics.of_queue(*labels, model_name=entry.labels.get("model_name", ""))
        for gate in gates:
            self._placed_gates["queue", entry.queue_name] = gate
            self._metrics.watch_gate(*labels, gate.state)
        worker = self._worker(entry, pool, [*gates, *self._pool_gates[pool.pool_id]], ack_batcher, metrics)
        ack_batcher.on_settled = partial(self._settled, worker)
        part = self._shared.part_of_queue(
            pool.pool_id, gates, is_shared=self._pool_entry(pool.pool_id).shared
        )
        allowance = Allowance(pool.slots, all_shares(gates), part=part) if gates else None
        self._shared.watch(pool)
        pool.add(Source(queue, worker, entry.labels, gates, allowance, guard.circuit))
        self._ack_batchers.append(ack_batcher)
        self._table.add(QueueParts(queue, worker, metrics))
        self.poller.add(worker, ack_batcher)

    def _worker(
        self,
        entry: QueueEntry,
        pool: Claimer,
        gates: list[Gate],
        ack_batcher: AckBatcher,
        metrics: QueueMetrics,
    ) -> Worker:
        env = self._settings.env
        guard = self._guards.of(self._routes.of(entry.queue_name).base_url)
        route = _result_route(self._settings, entry, self._reserved)
        return Worker(
            ack_batcher,
            route,
            guarded_dispatch(self._dispatch, guard, clock=self._clock.now),
            self._log,
            metrics,
            labels=entry.labels,
            withheld_labels=self._withheld_labels,
            gates=gates,
            lane=self._lanes[pool.pool_id],
            read_payload=partial(read_payload, self._redis),
            duplicates=self._duplicates(entry, route),
            budget=self._budget,
            clock=self._clock.now,
            max_request_bytes=env.max_request_bytes,
            on_outcome=self._tally.note,
            limits=RequestLimits(env.max_attempts, env.max_deadline_seconds),
        )

    def _settled(self, worker: Worker, settlement: Settlement, has_taken_effect: bool) -> None:
        worker.settled(settlement, has_taken_effect)
        if self._finished and has_taken_effect:
            self._finished.note(settlement)

    def _finished_log(self) -> FinishedLog | None:
        env = self._settings.env
        if not env.finished_records:
            return None
        limits = FinishedLimits(
            env.finished_records, env.finished_records_bytes, env.finished_records_seconds
        )
        log = FinishedLog(FinishedRecords(self._redis, limits), self._clock.now)
        self._tasks.append(self._task("finished records", WRITE_SECONDS, log.tick))
        return log

    def _duplicates(self, entry: QueueEntry, route: ResultRoute) -> Duplicates | None:
        """Who answers repeated submissions of this queue, if it is set to be idempotent."""
        own, default = entry.idempotent_seconds, self._settings.env.idempotent_seconds
        seconds = default if own is None else own
        return Duplicates(self._redis, route, self._log, window_seconds=seconds) if seconds else None

    def _queue_options(self) -> QueueOptions:
        env = self._settings.env
        return QueueOptions(
            retry_queue_name=self._settings.retry_queue_name,
            default_result_queue_name=self._settings.result_queue_name,
            lease_seconds=env.lease_seconds,
            cluster=redis_options(self._settings).is_cluster,
            wait_replicas=env.wait_replicas,
            wait_timeout_ms=max(1, round(500 * env.redis_timeout_seconds)),  # before the connection gives up
        )

    def _clock_watch(self) -> PeriodicTask:
        watch = SkewWatch(self._clock, self._log, "redis")
        self._metrics.watch_clock(lambda: self._clock.skew_seconds)

        async def look() -> None:
            watch.check()

        return self._task("clock", POST_SECONDS, look)

    def _task(self, name: str, seconds: float, tick: Callable[[], Awaitable[object]]) -> PeriodicTask:
        return PeriodicTask(name, seconds, tick, self._log, STORE_FAILURES)

    @property
    def redis(self) -> Store:
        """The connection to the queues."""
        return self._redis

    async def run(self) -> None:
        """Poll until stopped and drained, then close the connections."""
        try:
            for warning in (*memory_warnings(self._settings), *await self._warnings()):
                self._log.warning(warning)
            queues = [entry.queue_name for entry in self._settings.queues[:_MOST_EAGER]]
            self._log.info(
                "polling",
                queues=queues,
                queue_count=len(self._settings.queues),
                workers={p.pool_id: p.slots for p in self._pools.values()},
                max_in_flight_bytes=self._budget.total,
                metrics_port=await self._listen(),
            )
            await self._gates.start()
            self.has_begun = True
            await self.poller.run()
        finally:
            await close_in_time(self._closers(), self._log)

    def _closers(self) -> list[Close]:
        closers: list[Close] = [self._shared.leave, self._leave_board]
        if self._tracing:
            closers.append(self._tracing.aclose)
        if self._pages is not None:
            closers.append(self._pages.aclose)
        return [*closers, self._gates.aclose, self._client.aclose, self._redis.aclose]

    async def _leave_board(self) -> None:
        with contextlib.suppress(*STORE_FAILURES):
            await self._status.leave()
            if self._finished:
                await self._finished.tick()

    async def _listen(self) -> int:
        if self._pages is None:
            return 0
        return self._pages.port or await self._pages.start()

    async def _warnings(self) -> list[str]:
        try:
            return await durability_warnings(self._redis)
        except STORE_FAILURES as error:
            return [f"Redis does not answer yet: {explained(error)}"]


def _result_route(settings: Settings, entry: QueueEntry, reserved: ReservedNames) -> ResultRoute:
    env, own = settings.env, entry.result_per_request
    return ResultRoute(
        entry.result_queue_name,
        entry.result_ttl_seconds,
        settings.result_queue_name,
        is_per_request=env.result_per_request if own is None else own,
        has_details=env.result_details,
        apart_bytes=env.result_apart_bytes,
        apart_seconds=env.result_apart_seconds,
        may_name=settings.may_name_lists,
        reserved=reserved,
    )


def _reserved(settings: Settings) -> ReservedNames:
    names = [*(queue.queue_name for queue in settings.queues), settings.retry_queue_name]
    return reserved_names(names, all_gate_params(settings))
