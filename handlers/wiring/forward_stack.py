"""The stack around one attempt at a request: gateway client, breaker, gates, cancellation, metrics, tracing.

Optional layers are imported where they are built, so that a dispatch door loads neither Redis nor gates.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from handlers.contract.delivery import wrapped_answer_bytes
from handlers.contract.request import Request
from handlers.doors.accounted import AccountedDoor
from handlers.doors.door import ContextT, Door, handle
from handlers.doors.http_message import Answer, Delivery
from handlers.forward.forward import NO_LIMITS, Forward, Forwarder, Limits, Sender
from handlers.forward.gateway import Gateway, GatewayOptions
from handlers.forward.middleware.details import timed
from handlers.forward.middleware.guarded import GuardOptions, Guards, has_failed
from handlers.forward.outcome import Outcome
from handlers.forward.transforms.registry import build_transforms
from handlers.settings.settings import Settings
from handlers.telemetry.dependencies import GATES, MEMORY, Dependencies, Dependency
from handlers.telemetry.logs import Logger
from handlers.wiring.credentials import file_token, gateway_tls
from handlers.wiring.metrics import HandlerMetrics

if TYPE_CHECKING:
    from handlers.doors.pubsub.deduplicated import Once
    from handlers.forward.middleware.held import HeldForward
    from handlers.gates.gate import Gate
    from handlers.gates.waiting_room import WaitingRoom
    from handlers.poller.dispatcher import Dispatch
    from handlers.pubsub.publisher import Publisher
    from handlers.telemetry.tracing import Tracing

_EVENT_HOLD_SECONDS: Final = 30.0
"""How long an event waits at a closed gate before its source is told 429: shorter than sources wait for answers."""
_DEFAULT_POOL: Final = "default"


def gateway_of(settings: Settings) -> Gateway:
    """The client for all gateways of this process."""
    env = settings.env
    return Gateway(
        GatewayOptions(
            connect_timeout_seconds=env.connect_timeout_seconds,
            keepalive_seconds=env.connection_idle_seconds,
            max_response_bytes=env.max_response_bytes,
            ssl_context=gateway_tls(settings),
            token=file_token("GATEWAY_TOKEN_FILE", env.gateway_token_file),
        )
    )


def forwarder_of(settings: Settings, gateway: Sender, clock: Callable[[], float] = time.time) -> Forwarder:
    """Sends requests along the routes of these settings; `clock` gives the Unix seconds of deadlines."""
    env = settings.env
    return Forwarder(
        gateway,
        settings.routes,
        request_timeout_seconds=env.request_timeout_seconds,
        keeps_bytes=env.result_details,
        transforms=build_transforms(settings.file.request_transforms, "requestTransforms"),
        clock=clock,
    )


def guards_of(settings: Settings, log: Logger) -> Guards:
    """A circuit breaker and a retry budget for each gateway."""
    env = settings.env
    return Guards(GuardOptions(is_breaking=env.circuit_breaker, retry_share=env.retry_budget), log)


def held_pushes(settings: Settings, forward: Forward, parts: Parts) -> Forward:
    """Forwarding through the gates of subscriptions and of their pools, where they name any."""
    parts.holding.entry = forward
    topics, pools = settings.file.topics, {pool.id: pool for pool in settings.pools}
    if not any(topic.gate_type or pools[topic.worker_pool_id].gate_type for topic in topics):
        return forward
    from handlers.forward.middleware.held import Entrance, HeldForward
    from handlers.wiring.credentials import redis_options
    from handlers.wiring.gates import ProcessGates

    gates = ProcessGates(settings, redis_options(settings))
    parts.starters.append(gates.start)
    parts.closers.append(gates.aclose)
    parts.dependencies.watch(GATES, gates.are_available)
    of_pools = {
        pool.id: gates.build(pool.gate_type, pool.gate_params, f"pools[{number}]", pool.id)
        for number, pool in enumerate(settings.pools)
    }
    slots = {pool.id: pool.workers or settings.env.workers for pool in settings.pools}
    # One keeper for a pool, whichever subscription a request came by: its slots are those of all of them.
    keepers = {pool: _keeper(settings, of_pools[pool], slots[pool], parts) for pool in pools}
    for pool, keeper in keepers.items():
        parts.holding.keepers[f"pool {pool}"], parts.holding.gates[f"pool {pool}"] = keeper, of_pools[pool]
    entrances = {}
    for number, topic in enumerate(topics):
        pool = topic.worker_pool_id
        own = gates.build(topic.gate_type, topic.gate_params, f"topics[{number}]", topic.worker_pool_id)
        before = [_keeper(settings, own, slots[pool], parts)] if own else []
        for keeper in before:
            name = f"subscription {topic.subscriber_id}"
            parts.holding.keepers[name], parts.holding.gates[name] = keeper, own
        entrances[topic.subscriber_id] = Entrance([*before, keepers[pool]], [*own, *of_pools[pool]])
        if parts.metrics is not None:
            parts.metrics.watch_gates(topic.subscriber_id, own)
            parts.metrics.watch_pool(pool, slots[pool], of_pools[pool], partial(_waiting, keepers[pool]))
    return _holding(parts, HeldForward(forward, entrances))


def _waiting(keeper: WaitingRoom) -> int:
    return keeper.held


def held_events(settings: Settings, forward: Forward, parts: Parts) -> Forward:
    """Forwarding of events: those of other sources pass the gate of the pool `default`, if it names one.

    Their results get their details here, if they shall have any. The poller's events name their queue: it has asked
    its gates itself, before it claimed them, and adds the details when it settles.
    """
    if settings.env.result_details:
        from handlers.forward.middleware.details import explained, timed

        forward = timed(forward)  # the poller's too: by the time it sees that the gateway was asked
        others = explained(_held_by_default(settings, forward, parts))
    else:
        others = _held_by_default(settings, forward, parts)
    if others is forward:
        return forward

    async def forward_event(request: Request, limits: Limits) -> Outcome:
        return await (forward if request.queue else others)(request, limits)

    return forward_event


def _held_by_default(settings: Settings, forward: Forward, parts: Parts) -> Forward:
    """Forwarding through the gate of the pool `default`, if it names one."""
    parts.holding.entry = forward
    pools = enumerate(settings.pools)
    number, pool = next((number, pool) for number, pool in pools if pool.id == _DEFAULT_POOL)
    if not pool.gate_type:
        return forward
    from handlers.forward.middleware.held import Entrance, HeldForward
    from handlers.wiring.credentials import redis_options
    from handlers.wiring.gates import ProcessGates

    gates = ProcessGates(settings, redis_options(settings))
    parts.starters.append(gates.start)
    parts.closers.append(gates.aclose)
    parts.dependencies.watch(GATES, gates.are_available)
    built = gates.build(pool.gate_type, pool.gate_params, f"pools[{number}]", pool.id)
    keeper = _keeper(settings, built, pool.workers or settings.env.workers, parts)
    parts.holding.keepers["events"], parts.holding.gates["events"] = keeper, built
    entrance = Entrance([keeper], built)
    return _holding(parts, HeldForward(forward, {}, entrance, most_held_seconds=_EVENT_HOLD_SECONDS))


def _holding(parts: Parts, holder: HeldForward) -> Forward:
    parts.holding.holder, parts.holding.entry = holder, holder.forward
    return holder.forward


def _keeper(settings: Settings, gates: Sequence[Gate], slots: int, parts: Parts) -> WaitingRoom:
    from handlers.gates.waiting_room import WaitingRoom

    keeper = WaitingRoom(gates, slots=slots, most_held=settings.env.gate_most_held)
    parts.closers.append(keeper.aclose)
    return keeper


@dataclass(slots=True)
class Holding:
    """`entry` is where requests go in; `holder` is who holds them there, if there is a gate.

    `keepers` and `gates` are those of a pool or subscription, by its name.
    """

    entry: Forward | None = None
    holder: HeldForward | None = None
    keepers: dict[str, WaitingRoom] = field(default_factory=dict)
    gates: dict[str, Sequence[Gate]] = field(default_factory=dict)

    def take_over(self, before: Holding, entry: Forward) -> None:
        """Count what `before` has in flight against our limits; what it holds goes in at `entry`, a way to ours."""
        for name, keeper in self.keepers.items():
            if name in before.keepers:
                keeper.take_over(before.keepers[name])
        for name, gates in self.gates.items():
            for gate, gate_before in zip(gates, before.gates.get(name, ()), strict=False):
                gate.take_over(gate_before)
        if before.holder is not None:
            before.holder.move_to(entry)


def with_memory(settings: Settings, forward: Forward, parts: Parts) -> tuple[Forward, Once | None]:
    """Forwarding that ends with a cancellation, and who remembers answers, if a Redis is named for it."""
    if not settings.env.dedupe_redis_url:
        return forward, None
    from handlers.doors.pubsub.deduplicated import Once
    from handlers.forward.middleware.cancellable import CancellableForward
    from handlers.redis_store.connection import STORE_FAILURES, connect
    from handlers.redis_store.idempotency.deliveries import (
        DedupOptions,
        DeliveryRecords,
        deliveries_cancelled_at,
    )
    from handlers.wiring.credentials import redis_options

    redis = connect(replace(redis_options(settings), url=settings.env.dedupe_redis_url))
    parts.closers.append(redis.aclose)
    look_up = partial(deliveries_cancelled_at, redis)
    cancellable = CancellableForward(forward, look_up, STORE_FAILURES, parts.log)
    parts.starters.append(cancellable.start)
    parts.closers.append(cancellable.aclose)
    options = DedupOptions(lease_seconds=settings.env.lease_seconds)
    return cancellable.forward, Once(
        DeliveryRecords(redis, options), parts.log, parts.dependencies.add(MEMORY)
    )


def observed(forward: Forward, gateway: Dependency) -> Forward:
    """Forwarding that tells how each call went; a refusal for load tells nothing."""

    async def forwarding(request: Request, limits: Limits) -> Outcome:
        outcome = await forward(request, limits)
        failed = has_failed(outcome)
        if failed is not None:
            gateway.report(has_failed=failed)
        return outcome

    return forwarding


class ObservedPublisher:
    """A publisher that tells how each publish went; a result that is too large says nothing of the topic."""

    def __init__(self, publisher: Publisher, results: Dependency) -> None:
        self._publisher = publisher
        self._results = results

    async def publish(self, topic: str, data: bytes, attributes: Mapping[str, str] | None = None) -> str:
        """As the publisher."""
        from handlers.pubsub.errors import PublishFailed

        try:
            published_id = await self._publisher.publish(topic, data, attributes)
        except PublishFailed:
            self._results.report(has_failed=True)
            raise
        self._results.report(has_failed=False)
        return published_id


Clock = Callable[[], float]

_DISPATCH_MARGIN_SECONDS = 15.0
"""How much longer the poller waits for a handler than the handler for the gateway."""


def poller_client(settings: Settings) -> Gateway:
    """A client of the gateway where the handler runs in this process, else of the handlers."""
    if not settings.env.handler_url:
        return gateway_of(settings)
    env = settings.env
    limit = wrapped_answer_bytes(env.max_response_bytes)
    return Gateway(
        GatewayOptions(env.connect_timeout_seconds, env.connection_idle_seconds, max_response_bytes=limit)
    )


def poller_dispatch(settings: Settings, client: Gateway, tracing: Tracing | None, clock: Clock) -> Dispatch:
    """One attempt, by `client`: traced and timed as the settings say.

    `clock` gives the Redis server's Unix seconds.
    """
    dispatch = _traced_dispatch(settings, client, tracing, clock)
    return timed(dispatch) if settings.env.result_details else dispatch


def _traced_dispatch(settings: Settings, client: Gateway, tracing: Tracing | None, clock: Clock) -> Dispatch:
    if tracing is None:
        return _untraced_dispatch(settings, client, clock)
    from handlers.forward.middleware.traced import AttemptSpans, TracedSender, traced_dispatch
    from handlers.telemetry.tracing import PROCESS_REQUEST

    ids = {entry.queue_name: entry.id for entry in settings.queues if entry.id}
    spans = AttemptSpans(tracing, PROCESS_REQUEST, ids)
    sender = TracedSender(client, tracing, event_too=bool(settings.env.handler_url))
    return traced_dispatch(_untraced_dispatch(settings, sender, clock), spans)


def _untraced_dispatch(settings: Settings, client: Sender, clock: Clock) -> Dispatch:
    env = settings.env
    if env.handler_url:
        from handlers.poller.dispatcher import HttpDispatcher

        dispatcher = HttpDispatcher(
            client,
            env.handler_url,
            timeout_seconds=env.request_timeout_seconds + _DISPATCH_MARGIN_SECONDS,
            tokens=lambda: settings.dispatch_tokens,
            clock=clock,
            keeps_bytes=env.result_details,
        )
        return dispatcher.dispatch
    forward = forwarder_of(settings, client, clock).forward

    async def in_process(request: Request, _body: bytes) -> Outcome:
        return await forward(request, NO_LIMITS)

    return in_process


Walk = Callable[[Delivery], Awaitable[Answer]]
Closers = list[Callable[[], Awaitable[object]]]
Starters = list[Callable[[], Awaitable[object]]]


@dataclass(frozen=True, slots=True)
class Parts:
    """What a door's wiring adds to: who must be started and closed, what may fail, what holds requests.

    And who counts, if anybody does.
    """

    log: Logger
    closers: Closers
    starters: Starters
    metrics: HandlerMetrics | None
    dependencies: Dependencies = field(default_factory=Dependencies)
    holding: Holding = field(default_factory=Holding)


def accounted(
    door: Door[ContextT], queue_name: Callable[[ContextT], str], forward: Forward, parts: Parts
) -> Walk:
    """The walk of one door, counted and logged."""
    if parts.metrics is None:
        logging = AccountedDoor(door, queue_name, parts.log)
        return lambda delivery: handle(logging, delivery, forward)
    from handlers.forward.middleware.counted import counted_attempts

    counting = AccountedDoor(door, queue_name, parts.log, (parts.metrics.door, parts.metrics.queue_of))
    counted = counted_attempts(forward, parts.metrics.queue_of, parts.metrics.door)
    return lambda delivery: handle(counting, delivery, counted)


def calls(forward: Forward, metrics: HandlerMetrics | None) -> Forward:
    """Calls to the gateway, counted where anybody counts."""
    if metrics is None:
        return forward
    from handlers.forward.middleware.counted import counted_calls

    return counted_calls(forward, metrics.queue_of)
