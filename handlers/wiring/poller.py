"""Build the poller from the settings, and apply configuration changes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Final

import msgspec

from handlers.byte_budget import ByteBudget, save_address_space
from handlers.cancellation import Close, close_in_time
from handlers.clock import FollowedClock
from handlers.forward.middleware.breaker import GatewayBreakers
from handlers.forward.route import Routes
from handlers.gates.gate import Gate, band_of
from handlers.poller.ack_batcher import Settlement
from handlers.poller.claimer import Claimer, ClaimerOptions
from handlers.poller.maintenance import PeriodicTask
from handlers.poller.poller import Poller
from handlers.poller.pool_share import is_pool_shared
from handlers.poller.priority import LaneOptions, Merge, build_merge, check_objectives
from handlers.poller.settlement import Duplicates, RequestLimits, ResultRoute
from handlers.poller.worker import WorkerOptions
from handlers.redis_store.connection import (
    STORE_FAILURES,
    Store,
    connect,
    connections_in_use,
    durability_warnings,
    evicting_policy,
)
from handlers.redis_store.faults import outage_reason
from handlers.redis_store.keys import ReservedNames
from handlers.settings.config_file import PoolEntry, QueueEntry
from handlers.settings.settings import Settings, masked_url, setting_warnings
from handlers.status.collect import POST_SECONDS, Tally
from handlers.telemetry.dependencies import SkewWatch
from handlers.telemetry.logs import get_logger
from handlers.telemetry.metrics import CONTENT_TYPE, Metrics
from handlers.telemetry.pages import Page, PagesServer
from handlers.wiring.credentials import redis_options
from handlers.wiring.forward_stack import PollerStack, QueueLayers, breakers_of, poller_client
from handlers.wiring.gates import (
    GateOwner,
    ProcessGates,
    all_gate_params,
    gate_entries,
    reserved_names,
    withheld_labels,
)
from handlers.wiring.metrics import tracing_of
from handlers.wiring.poller_queues import QueuePlan, RedisQueues, SharedParts, store_identity
from handlers.wiring.reload import ConfigWatch

_MOST_LOGGED: Final = 64
_END_SECONDS: Final = 0.2
"""Longest wait of an ending process for the background tasks of a reload."""


class Plan(msgspec.Struct, frozen=True):
    """A valid configuration and values derived from it, not yet in force."""

    settings: Settings
    routes: Routes
    stack: PollerStack
    reserved: ReservedNames
    withheld_labels: frozenset[str]
    pools: Mapping[str, PoolEntry]
    merges: Mapping[str, Merge]

    def labels_of(self, entry: QueueEntry) -> tuple[str, str, str]:
        """Labels of a queue's metrics: id, name and pool."""
        return entry.id or entry.queue_name, entry.queue_name, entry.worker_pool_id


class PollerApp:
    """A poller with its connections.

    With `variables`, the environment of the process, it follows changes of the configuration file.
    """

    def __init__(self, settings: Settings, variables: Mapping[str, str] | None = None) -> None:
        """Connects nothing. Raises `InvalidSetting` for an invalid configuration."""
        env = settings.env
        self._log = get_logger("poller")
        self.has_begun = False
        """Whether requests may have been claimed."""
        self._client = poller_client(settings)
        self._tracing = tracing_of(settings)
        self._breakers: GatewayBreakers = breakers_of(settings, self._log)
        self._metrics = Metrics()
        self._claimers: dict[str, Claimer] = {}
        self.poller = Poller(self._log, grace_seconds=env.shutdown_grace_seconds)
        clock = FollowedClock()
        tally = Tally(clock=clock.now, tenant_field=settings.fairness_attribute)
        save_address_space()
        budget = ByteBudget(settings.max_in_flight_bytes)
        self._shared = SharedParts(self._log, clock, budget, tally, self.poller, self._claimers)
        self._gates = ProcessGates(settings, gate_entries(settings, "pool", "queue"))
        self._plan = self._planned(settings)
        self._old_queues: list[RedisQueues] = []
        self._closing: set[asyncio.Task[None]] = set()
        self._queues = RedisQueues(settings, self._shared, connect(redis_options(settings)))
        self._apply(self._plan, None, set())
        self._config = ConfigWatch(variables or {}, settings, self._log)
        self._is_following = variables is not None and self._config.is_watching
        self.poller.add(self._clock_watch())
        self.poller.add(self._eviction_watch())
        self._watch_metrics()
        pages: dict[str, Callable[[], Page]] = {
            "/healthz": lambda: Page(200, b"ok\n"),
            "/readyz": self._ready,
            "/metrics": lambda: Page(200, self._metrics.render(), CONTENT_TYPE),
        }
        self._pages = PagesServer(pages, env.host, env.metrics_port, self._pages_protocol)

    def _planned(self, settings: Settings, previous: Plan | None = None) -> Plan:
        """The plan of these settings. Raises `InvalidSetting`."""
        names = [*(queue.queue_name for queue in settings.queues), settings.retry_queue_name]
        return Plan(
            settings,
            settings.routes,
            PollerStack(settings, self._client, self._tracing, self._breakers, self._shared.clock.now),
            reserved_names(names, all_gate_params(settings)),
            withheld_labels(settings),
            {entry.id: entry for entry in settings.pools},
            {entry.id: self._merge(number, entry, previous) for number, entry in enumerate(settings.pools)},
        )

    def _merge(self, number: int, entry: PoolEntry, previous: Plan | None) -> Merge:
        """The merge policy of a pool; the current object if unchanged."""
        setting = f"pools[{number}]"
        check_objectives(entry.lane_objectives, f"{setting}.lane_objectives")
        merge = build_merge(entry.merge_policy, f"{setting}.merge_policy", ageing_seconds=entry.ageing_seconds)
        old = None if previous is None else previous.pools.get(entry.id)
        if previous is None or old is None:
            return merge
        is_kept = (old.merge_policy, old.ageing_seconds) == (entry.merge_policy, entry.ageing_seconds)
        return previous.merges[entry.id] if is_kept else merge

    async def reload(self, settings: Settings) -> None:
        """Put changed settings in force.

        Raises `InvalidSetting` for invalid ones, and then changes nothing.
        """
        if self.poller.is_stopping:
            return
        previous = self._plan
        plan = self._planned(settings, previous)
        prepared = self._gates.prepared(gate_entries(settings, "pool", "queue"))
        is_other_store = self._queues.identity != store_identity(settings)
        redis = connect(redis_options(settings)) if is_other_store else self._queues.redis
        changes = await self._gates.apply(prepared)  # from here on, nothing may raise `InvalidSetting`
        work = self.poller.work()
        if is_other_store:
            self._queues.retire()
            self._in_background(self._replaced(self._queues))
            self._queues = RedisQueues(settings, self._shared, redis)
        self._plan = plan
        self._apply(plan, previous, changes.owners)
        self._in_background(self._close_gates(changes.discarded, work))
        self._warn(settings)
        self._log.info("configuration reloaded", queues=[one.queue_name for one in settings.queues])

    def _apply(self, plan: Plan, previous: Plan | None, changed_owners: set[GateOwner]) -> None:
        settings = plan.settings
        self._shared.tally.tenant_field = settings.fairness_attribute
        kept: set[str] = set()
        for entry in plan.pools.values():
            kept |= self._apply_pool(plan, entry)
        plans = {entry.queue_name: self._queue_plan(plan, entry) for entry in settings.queues}
        kept |= {entry.worker_pool_id for entry in settings.queues if self._is_queue_shared(plan, entry)}
        hand_back = {
            entry.queue_name
            for entry in settings.queues
            if {("queue", entry.queue_name), ("pool", entry.worker_pool_id)} & changed_owners
        }
        self._queues.apply(settings.queues[0].queue_name, plans, hand_back)
        self._show_gates(plan)
        if previous is not None:
            self._forget(plan, previous)
            self._in_background(self._queues.shares.leave(kept))

    def _forget(self, plan: Plan, previous: Plan) -> None:
        """Remove the gauges and idle claimers of removed pools and queues.

        A pool with requests in flight keeps its claimer, so that they count if the pool is configured again.
        """
        for pool_id in previous.pools.keys() - plan.pools.keys():
            self._metrics.forget_pool(pool_id)
        for pool_id, claimer in list(self._claimers.items()):
            if pool_id not in plan.pools and not claimer.in_flight:
                del self._claimers[pool_id]
                self._in_background(self.poller.remove_claimer(claimer))
        shown = {plan.labels_of(entry) for entry in plan.settings.queues}
        for entry in previous.settings.queues:
            if previous.labels_of(entry) not in shown:
                self._metrics.forget_queue(previous.labels_of(entry))

    def _apply_pool(self, plan: Plan, entry: PoolEntry) -> set[str]:
        """Put a pool's options in force; return its id if shared."""
        settings, gates = plan.settings, self._gates.at(("pool", entry.id))
        is_shared = is_pool_shared(gates, entry.shared)
        options = ClaimerOptions(
            slots=entry.workers or settings.env.workers,
            poll_interval_seconds=settings.poll_interval_seconds,
            gates=gates,
            merge=plan.merges[entry.id],
            share=self._queues.shares.of_pool(entry.id, is_shared=is_shared),
            lane_of=partial(band_of, tier_label=settings.tier_label),
            watch=self._queues.watch,
        )
        if entry.id in self._claimers:
            self._claimers[entry.id].change(options)
        else:
            claimer = self._claimers[entry.id] = Claimer(entry.id, options, self._log)
            self.poller.add_claimer(claimer)
        return {entry.id} if is_shared else set()

    def _is_queue_shared(self, plan: Plan, entry: QueueEntry) -> bool:
        """Whether pollers share the budget of the queue's own gates."""
        pool = plan.pools[entry.worker_pool_id]
        gates = self._gates.at(("queue", entry.queue_name))
        return is_pool_shared(gates, None) and pool.shared is not False

    def _queue_plan(self, plan: Plan, entry: QueueEntry) -> QueuePlan:
        breaker = self._breakers.of(plan.routes.of(entry.queue_name).base_url)
        is_shared = self._is_queue_shared(plan, entry)
        return QueuePlan(
            claimer=self._claimers[entry.worker_pool_id],
            worker_options=partial(self._worker_options, plan, entry),
            labels=entry.labels,
            gates=self._gates.at(("queue", entry.queue_name)),
            share=lambda shares: shares.of_queue(entry.worker_pool_id, is_shared=is_shared),
            circuit=breaker.circuit,
        )

    def _worker_options(self, plan: Plan, entry: QueueEntry, redis: Store) -> WorkerOptions:
        settings, env = plan.settings, plan.settings.env
        route = result_route(settings, entry, plan.reserved)
        seconds = env.idempotent_seconds if entry.idempotent_seconds is None else entry.idempotent_seconds
        model_name = entry.labels.get("model_name", "")
        gates: list[Gate] = [
            *self._gates.at(("queue", entry.queue_name)),
            *self._gates.at(("pool", entry.worker_pool_id)),
        ]
        metrics = self._metrics.of_queue(*plan.labels_of(entry), model_name=model_name)
        pool = plan.pools[entry.worker_pool_id]
        lane = LaneOptions(pool.lane_objectives, pool.priority_header, settings.tier_label)
        return WorkerOptions(
            route=route,
            forward=plan.stack.of_queue(QueueLayers(gates, lane, metrics)),
            metrics=metrics,
            max_request_bytes=env.max_request_bytes,
            labels=entry.labels,
            withheld_labels=plan.withheld_labels,
            duplicates=Duplicates(redis, route, self._log, window_seconds=seconds) if seconds else None,
            limits=RequestLimits(env.max_attempts, env.max_deadline_seconds),
        )

    async def _close_gates(self, gates: list[Gate], work: list[asyncio.Task[Settlement]]) -> None:
        """Close replaced gates once the requests in `work` have ended."""
        if gates and work:
            await asyncio.wait(work)
        for gate in gates:
            await gate.aclose()

    async def _replaced(self, queues: RedisQueues) -> None:
        """Close the connection to a replaced Redis once its queues are idle."""
        self._old_queues.append(queues)
        await queues.ended()
        await queues.redis.aclose()
        self._old_queues.remove(queues)

    def _in_background(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _clock_watch(self) -> PeriodicTask:
        clock = self._shared.clock
        watch = SkewWatch(clock, self._log, "redis")
        self._metrics.watch_clock(lambda: clock.skew_seconds)

        async def check() -> None:
            watch.check()

        return PeriodicTask("clock", POST_SECONDS, check, self._log, STORE_FAILURES)

    def _eviction_watch(self) -> PeriodicTask:
        self._evicting = ""

        async def check() -> None:
            self._evicting = await evicting_policy(self._queues.redis)

        return PeriodicTask("eviction", POST_SECONDS, check, self._log, STORE_FAILURES)

    def _watch_metrics(self) -> None:
        self._metrics.watch_circuits(self._breakers.open_circuits)
        self._metrics.watch_ready(lambda: self._ready().status_code == 200)
        self._metrics.watch_claims(lambda: bool(self.poller.refusal))
        self._metrics.watch_connections("redis", lambda: connections_in_use(self._queues.redis))
        peer = "handler" if self._plan.settings.env.handler_url else "gateway"
        self._metrics.watch_connections(peer, lambda: self._client.in_use)
        self._metrics.watch_refusals(lambda: self._config.is_refused)
        self._metrics.watch(self._show_pools)

    def _show_pools(self) -> None:
        for pool_id in self._plan.pools:
            claimer = self._claimers[pool_id]
            self._metrics.pool(pool_id, claimer.options.slots, claimer.budget)

    def _show_gates(self, plan: Plan) -> None:
        labels_of_owners = {("pool", pool_id): ("", "", pool_id) for pool_id in plan.pools}
        labels_of_owners |= {("queue", one.queue_name): plan.labels_of(one) for one in plan.settings.queues}
        for owner, labels in labels_of_owners.items():
            self._metrics.forget_gate(*labels)
            for gate in self._gates.at(owner):
                self._metrics.watch_gate(*labels, gate.state)

    def _pages_protocol(self) -> Callable[..., Any]:
        from handlers.doors.slow_clients import timely_protocol  # imports uvicorn, which takes time

        seconds = self._plan.settings.env.receive_timeout_seconds
        return timely_protocol(seconds, seconds)

    def _ready(self) -> Page:
        """The readiness page. A poller is ready while it claims and settles, and Redis keeps its queues."""
        if self.poller.is_stopping:
            return Page(503, b"stopping\n")
        if refusal := self.poller.refusal:
            return Page(503, f"{refusal}\n".encode())
        is_claiming = not any(claimer.is_waiting_for_store for claimer in self._claimers.values())
        if not (is_claiming and self._queues.is_settling):
            reason = outage_reason(self._log)
            return Page(503, f"waiting for redis: {reason}\n".encode() if reason else b"waiting for redis\n")
        if self._evicting:
            return Page(
                503,
                f"Redis may drop queues: set maxmemory-policy noeviction, got {self._evicting}\n".encode(),
            )
        return Page(
            200,
            b"ready, but a changed configuration is refused\n" if self._config.is_refused else b"ready\n",
        )

    @property
    def redis(self) -> Store:
        return self._queues.redis

    def stop(self) -> None:
        """Begin to drain; a second call ends the grace period."""
        self.poller.stop()

    async def run(self) -> None:
        """Poll until stopped and drained, then close the connections."""
        settings = self._plan.settings
        following = [asyncio.create_task(self._finish_start())]
        try:
            self._warn(settings)
            self._log.info(
                "polling",
                queues=[entry.queue_name for entry in settings.queues[:_MOST_LOGGED]],
                queue_count=len(settings.queues),
                workers={name: claimer.options.slots for name, claimer in self._claimers.items()},
                max_in_flight_bytes=self._shared.budget.total,
                **_target(settings),
                metrics_port=self._pages.listen(),
            )
            await self._gates.start()
            self.has_begun = True
            if self._is_following:
                following.append(asyncio.create_task(self._config.follow(self.reload)))
            await self.poller.run()
        finally:
            await self._end(following)
            await close_in_time(self._closers(), self._log)

    def _warn(self, settings: Settings) -> None:
        for warning in setting_warnings(settings):
            self._log.warning(warning)

    async def _end(self, following: list[asyncio.Task[None]]) -> None:
        """Wait a few seconds for the background tasks, then cancel them."""
        if self._closing:
            await asyncio.wait(self._closing, timeout=_END_SECONDS)
        tasks = [*following, *self._closing]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _finish_start(self) -> None:
        """Serve the pages and check Redis' durability, after the first claims."""
        await self.poller.first_claims()
        try:
            await self._pages.serve()
            with contextlib.suppress(*STORE_FAILURES):  # the parts log them
                for warning in await durability_warnings(self._queues.redis):
                    self._log.warning(warning)
        except Exception as error:  # noqa: BLE001  # claims continue; without the pages the liveness probe fails
            self._log.error("start not finished", error=repr(error))

    def _closers(self) -> list[Close]:
        stores = [self._queues, *self._old_queues]
        return [
            *(queues.leave for queues in stores),
            *([self._tracing.aclose] if self._tracing else []),
            self._pages.aclose,
            self._gates.aclose,
            self._client.aclose,
            *(queues.redis.aclose for queues in stores),
        ]


def result_route(settings: Settings, entry: QueueEntry, reserved: ReservedNames) -> ResultRoute:
    """The result list and form of a queue's results."""
    env, own = settings.env, entry.result_per_request
    return ResultRoute(
        entry.result_queue_name,
        entry.result_ttl_seconds,
        settings.result_queue_name,
        is_per_request=env.result_per_request if own is None else own,
        has_details=env.result_details,
        offload_bytes=env.result_apart_bytes,
        offload_seconds=env.result_apart_seconds,
        may_name=settings.may_name_lists,
        reserved=reserved,
    )


def _target(settings: Settings) -> dict[str, object]:
    """Log field of the handler, or else of the gateways."""
    if settings.env.handler_url:
        return {"handler": masked_url(settings.env.handler_url)}
    routes = settings.routes
    bases = {routes.of(entry.queue_name).base_url for entry in settings.queues}
    return {"gateways": [masked_url(base) for base in sorted(bases)[:_MOST_LOGGED]]}
