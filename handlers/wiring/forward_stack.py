"""The layers around one attempt at a request, and their order (`ForwardStack`).

`push_stack`, `event_stack` and `PollerStack` choose the layers. A layer takes the next inner `Forward` and returns one
that wraps it. Optional layers are imported where they are built, so that a dispatch door loads neither Redis nor
gates.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.structs import replace

from handlers.byte_budget import ByteBudget, save_address_space
from handlers.contract.events import wrapped_answer_bytes
from handlers.contract.masked_text import without_secrets
from handlers.contract.request import Request
from handlers.doors.door import Answer, ContextT, Delivery, DeliveryRecorder, Door, handle
from handlers.forward.forward import AttemptOptions, Forward, Forwarder, Sender
from handlers.forward.gateway import Gateway
from handlers.forward.middleware.account import counted_attempts, counted_calls, timed, with_details
from handlers.forward.middleware.breaker import BreakerForward, BreakerOptions, GatewayBreakers, has_failed
from handlers.forward.outcome import Outcome
from handlers.forward.transforms import build_transforms
from handlers.settings.settings import Settings
from handlers.telemetry.dependencies import GATES, GATEWAY, MEMORY, Dependencies, Dependency
from handlers.telemetry.logs import Logger, RareWarning, get_logger
from handlers.transport.transport import TransportOptions
from handlers.wiring.credentials import file_token, gateway_tls
from handlers.wiring.metrics import HandlerMetrics, handler_metrics_of, tracing_of

if TYPE_CHECKING:
    from handlers.doors.pubsub.deduplicated import Once
    from handlers.gates.gate import Gate
    from handlers.poller.priority import LaneOptions
    from handlers.telemetry.metrics import QueueMetrics
    from handlers.telemetry.tracing import Tracing
    from handlers.wiring.gates import DoorGates, GatePlan

EVENT_HOLD_SECONDS: Final = 30.0
"""Longest wait of an event at a closed gate, then 429; shorter than the time that sources wait for an answer."""
_DEFAULT_POOL: Final = "default"


Layer = Callable[[Forward], Forward]
Clock = Callable[[], float]


class ForwardStack(msgspec.Struct, frozen=True):
    """The layers around `send`, outermost first (None: left out).

    `send` makes the HTTP call to the gateway or to a handler.
    """

    attempts: Layer | None = None
    """Counts attempts in metrics, including attempts that wait at a gate."""
    results: Layer | None = None
    """Adds details to final results, for callers that do not add them when they settle."""
    cancellation: Layer | None = None
    """Ends an attempt whose request is cancelled."""
    admission: Layer | None = None
    """Asks the gates of the queue or subscription and of its pool."""
    lane: Layer | None = None
    """Sets the objective and priority of the request's lane, which depends on labels that the gates set."""
    breaker: Layer | None = None
    """Applies the gateway's circuit breaker and retry budget."""
    details: Layer | None = None
    """Adds the duration of the attempt."""
    health: Layer | None = None
    """Reports outcomes to the gateway's health, for readiness."""
    calls: Layer | None = None
    """Counts HTTP calls in metrics."""
    tracing: Layer | None = None
    """Opens a span for each attempt."""

    def around(self, send: Forward) -> Forward:
        forward = send
        for name in reversed(STACK_ORDER):
            layer: Layer | None = getattr(self, name)
            if layer is not None:
                forward = layer(forward)
        return forward


STACK_ORDER: Final = ForwardStack.__struct_fields__
"""The order of the layers, outermost first: that of their declaration."""


def push_stack(settings: Settings, parts: Parts) -> tuple[Forward, Once | None]:
    """The push door's stack, and its dedup store if one is configured."""
    tracing, sender = _tracing_of_door(settings, parts, is_first_hop=True)
    once, cancellation = _dedup_store(settings, parts)
    stack = ForwardStack(
        attempts=_attempts(parts),
        cancellation=cancellation,
        admission=lambda forward: held_pushes(settings, forward, parts),
        breaker=_breaker(settings, parts.shared.breakers),
        details=timed if settings.env.result_details else None,
        health=_health(parts),
        calls=_calls(parts),
        tracing=tracing,
    )
    return stack.around(forwarder_of(settings, sender).forward), once


def event_stack(settings: Settings, parts: Parts) -> Forward:
    """The dispatch door's stack, which depends on the event's sender.

    Only a poller's events name a queue. The poller itself applies gates, breaker and final details to them; a second
    breaker here would refuse the poller's probes. All other events pass the gate of the pool `default`.
    """
    tracing, sender = _tracing_of_door(settings, parts, is_first_hop=False)
    has_details = settings.env.result_details
    send = forwarder_of(settings, sender).forward
    of_pollers = ForwardStack(
        attempts=_attempts(parts),
        details=timed if has_details else None,  # a duration shows the poller that the gateway was called
        health=_health(parts),
        calls=_calls(parts),
        tracing=tracing,
    )
    of_others = replace(
        of_pollers,
        results=with_details if has_details else None,
        admission=lambda forward: held_events(settings, forward, parts),
        breaker=_breaker(settings, parts.shared.breakers),
    )
    of_poller, of_other = of_pollers.around(send), of_others.around(send)

    async def forward_event(request: Request, options: AttemptOptions) -> Outcome:
        return await (of_poller if request.queue else of_other)(request, options)

    return forward_event


class QueueLayers(msgspec.Struct, frozen=True):
    """The parts of the poller's stack that differ between queues."""

    gates: Sequence[Gate]
    lane: LaneOptions
    metrics: QueueMetrics


class PollerStack:
    """The poller's stacks: one `send` per process, one stack per queue.

    `clock` returns Unix seconds of the Redis server. The worker counts the attempts, because an attempt begins before
    its offloaded payload is read.
    """

    def __init__(
        self, settings: Settings, client: Gateway, tracing: Tracing | None, breakers: GatewayBreakers, clock: Clock
    ) -> None:
        self._clock = clock
        self._breaker = _breaker(settings, breakers, clock)
        self._details: Layer | None = timed if settings.env.result_details else None
        self._tracing: Layer | None = None
        sender: Sender = client
        if tracing is not None:
            from handlers.forward.middleware.traced import AttemptSpans, TracedSender, traced_forward
            from handlers.telemetry.tracing import PROCESS_REQUEST

            ids = {entry.queue_name: entry.id for entry in settings.queues if entry.id}
            self._tracing = partial(traced_forward, spans=AttemptSpans(tracing, PROCESS_REQUEST, ids))
            sender = TracedSender(client, tracing, event_too=bool(settings.env.handler_url))
        self._send = _poller_send(settings, sender, clock)

    def of_queue(self, layers: QueueLayers) -> Forward:
        from handlers.forward.middleware.admission import admitted
        from handlers.poller.priority import laned

        return ForwardStack(
            admission=partial(admitted, gates=layers.gates, clock=self._clock),
            lane=partial(laned, options=layers.lane),
            breaker=self._breaker,
            details=self._details,
            calls=partial(counted_calls, queue_of=lambda _queue: layers.metrics),
            tracing=self._tracing,
        ).around(self._send)


def _poller_send(settings: Settings, client: Sender, clock: Clock) -> Forward:
    env = settings.env
    if not env.handler_url:
        return forwarder_of(settings, client, clock).forward
    from handlers.poller.dispatcher import HttpDispatcher

    return HttpDispatcher(
        client,
        env.handler_url,
        timeout_seconds=env.request_timeout_seconds + _DISPATCH_MARGIN_SECONDS,
        tokens=lambda: settings.dispatch_tokens,
        clock=clock,
        keeps_bytes=env.result_details,
        refusals=RareWarning(get_logger("poller"), "handler refused the poller"),
    ).forward


def _attempts(parts: Parts) -> Layer | None:
    if parts.metrics is None:
        return None
    return partial(counted_attempts, queue_of=parts.metrics.queue_of, door=parts.metrics.door)


def _calls(parts: Parts) -> Layer | None:
    if parts.metrics is None:
        return None
    return partial(counted_calls, queue_of=parts.metrics.queue_of)


def _breaker(settings: Settings, breakers: GatewayBreakers, clock: Clock = time.time) -> Layer:
    routes = settings.routes

    def breaker(forward: Forward) -> Forward:
        return BreakerForward(forward, lambda queue: routes.of(queue).base_url, breakers, clock=clock).forward

    return breaker


def _health(parts: Parts) -> Layer:
    return partial(observed, gateway=parts.dependencies.add(GATEWAY))


def _tracing_of_door(settings: Settings, parts: Parts, *, is_first_hop: bool) -> tuple[Layer | None, Sender]:
    """The tracing layer and the client, without spans if tracing is off."""
    tracing, gateway = tracing_of(settings), parts.shared.gateway
    if tracing is None:
        return None, gateway
    from handlers.forward.middleware.traced import AttemptSpans, TracedSender, traced_forward
    from handlers.telemetry.tracing import HANDLE_REQUEST, PROCESS_REQUEST

    parts.closers.append(tracing.aclose)
    # For an event at the dispatch door, the poller has already opened the attempt's span.
    spans = AttemptSpans(tracing, PROCESS_REQUEST if is_first_hop else HANDLE_REQUEST)
    return partial(traced_forward, spans=spans), TracedSender(gateway, tracing)


def gateway_of(settings: Settings) -> Gateway:
    """The client for all gateways of this process."""
    env = settings.env
    return Gateway(
        TransportOptions(
            connect_seconds=env.connect_timeout_seconds,
            idle_seconds=env.connection_idle_seconds,
            max_response_bytes=env.max_response_bytes,
            ssl_context=gateway_tls(settings),
        ),
        file_token("GATEWAY_TOKEN_FILE", env.gateway_token_file),
    )


def forwarder_of(settings: Settings, gateway: Sender, clock: Callable[[], float] = time.time) -> Forwarder:
    """The forwarder for these settings. `clock` returns Unix seconds."""
    env = settings.env
    unreachable = RareWarning(get_logger("gateway"), "gateway unreachable")
    return Forwarder(
        gateway,
        settings.routes,
        request_timeout_seconds=env.request_timeout_seconds,
        keeps_bytes=env.result_details,
        transforms=build_transforms(settings.file.request_transforms, "requestTransforms"),
        clock=clock,
        on_unreachable=lambda gateway, reason: unreachable.report(gateway=without_secrets(gateway), reason=reason),
    )


def breakers_of(settings: Settings, log: Logger) -> GatewayBreakers:
    """A circuit breaker and a retry budget for each gateway."""
    env = settings.env
    return GatewayBreakers(BreakerOptions(is_breaking=env.circuit_breaker, retry_share=env.retry_budget), log)


def shared_by_handlers(
    settings: Settings, target: str, log: Logger, is_refused: Callable[[], bool]
) -> SharedByHandlers:
    """The objects that the handlers of one process share. Raises `InvalidSetting`."""
    save_address_space()
    shared = SharedByHandlers(
        gateway_of(settings),
        breakers_of(settings, log),
        ByteBudget(settings.max_in_flight_bytes),
        handler_metrics_of(settings, target),
        is_refused=is_refused,
    )
    if shared.metrics is not None:
        metrics = shared.metrics.metrics
        metrics.watch_connections("gateway", lambda: shared.gateway.in_use)
        metrics.watch_circuits(shared.breakers.open_circuits)
        metrics.watch_refusals(is_refused)
    return shared


def held_pushes(settings: Settings, forward: Forward, parts: Parts) -> Forward:
    """The admission layer of pushes: gates of subscriptions and their pools."""
    pools = {pool.id: pool for pool in settings.pools}
    is_gated = any(topic.gate_type or pools[topic.worker_pool_id].gate_type for topic in settings.file.topics)
    plan = (lambda gates: gates.push_plan(settings)) if is_gated else None
    return _held(settings, forward, parts, math.inf, plan)


def held_events(settings: Settings, forward: Forward, parts: Parts) -> Forward:
    """The admission layer of events: the gate of the pool `default`."""
    is_gated = any(pool.id == _DEFAULT_POOL and pool.gate_type for pool in settings.pools)
    plan = (lambda gates: gates.event_plan(settings)) if is_gated else None
    return _held(settings, forward, parts, EVENT_HOLD_SECONDS, plan)


def _held(
    settings: Settings,
    forward: Forward,
    parts: Parts,
    most_held_seconds: float,
    plan_of: Callable[[DoorGates], GatePlan] | None,
) -> Forward:
    """The layer that asks the gates of a plan before `forward`.

    The plan takes effect when the handler starts. Without gates, the result is `forward` itself. Raises
    `InvalidSetting`.
    """
    if plan_of is None and parts.shared.gates is None:
        return forward
    from handlers.wiring.gates import DoorGates, GatePlan

    if parts.shared.gates is None:
        parts.shared.gates = DoorGates(settings, forward, most_held_seconds=most_held_seconds)
    gates = parts.shared.gates
    plan = GatePlan() if plan_of is None else plan_of(gates)
    if plan_of is not None:
        parts.dependencies.watch(GATES, gates.are_available)

    async def take_effect() -> list[Gate]:
        discarded = await gates.apply(plan, parts.occupied(forward))
        if parts.metrics is not None:
            gates.show(plan, parts.metrics)
        return discarded

    parts.effects.append(take_effect)
    return gates.forward


def _dedup_store(settings: Settings, parts: Parts) -> tuple[Once | None, Layer | None]:
    """The dedup store and the cancellation layer, which both need its Redis."""
    if not settings.env.dedupe_redis_url:
        return None, None
    from handlers.doors.pubsub.deduplicated import Once
    from handlers.forward.middleware.cancellable import CancellableForward
    from handlers.redis_store.connection import STORE_FAILURES, connect
    from handlers.redis_store.idempotency.idempotency import DedupOptions, DeliveryRecords, deliveries_cancelled_at
    from handlers.wiring.credentials import redis_options

    redis = connect(replace(redis_options(settings), url=settings.env.dedupe_redis_url))
    parts.closers.append(redis.aclose)

    def cancellation(forward: Forward) -> Forward:
        look_up = partial(deliveries_cancelled_at, redis)
        cancellable = CancellableForward(forward, look_up, STORE_FAILURES, parts.log)
        parts.starters.append(cancellable.start)
        parts.closers.append(cancellable.aclose)
        return cancellable.forward

    records = DeliveryRecords(redis, DedupOptions(lease_seconds=settings.env.lease_seconds))
    return Once(records, parts.log, parts.dependencies.add(MEMORY)), cancellation


def observed(forward: Forward, gateway: Dependency) -> Forward:
    """The layer that reports the gateway's health after each call."""

    async def forwarding(request: Request, options: AttemptOptions) -> Outcome:
        outcome = await forward(request, options)
        failed = has_failed(outcome)
        if failed is not None:
            gateway.report(has_failed=failed)
        return outcome

    return forwarding


_DISPATCH_MARGIN_SECONDS = 15.0
"""The poller waits this much longer for a handler than the handler waits for the gateway."""


def poller_client(settings: Settings) -> Gateway:
    """The poller's HTTP client, of the handlers or (in-process) of the gateway."""
    if not settings.env.handler_url:
        return gateway_of(settings)
    env = settings.env
    limit = wrapped_answer_bytes(env.max_response_bytes)
    return Gateway(TransportOptions(env.connect_timeout_seconds, env.connection_idle_seconds, max_response_bytes=limit))


Closers = list[Callable[[], Awaitable[object]]]
Starters = list[Callable[[], Awaitable[object]]]


def _as_it_is(forward: Forward) -> Forward:
    return forward


class SharedByHandlers(msgspec.Struct):
    """Objects that the handlers of one process share. They outlive a reload.

    `gates` is None until the settings name a gate.
    """

    gateway: Gateway
    breakers: GatewayBreakers
    budget: ByteBudget
    metrics: HandlerMetrics | None = None
    gates: DoorGates | None = None
    is_stopping: bool = False
    is_refused: Callable[[], bool] = lambda: False

    async def aclose(self) -> None:
        if self.gates is not None:
            await self.gates.aclose()
        await self.gateway.aclose()


class Parts(msgspec.Struct, frozen=True):
    """Parts that are collected while a handler is built.

    If one of the `starters` fails, the configuration is refused. `effects` run after them, put the configuration in
    force, and return gates to close with the previous handler. `occupied` wraps a `Forward` so that the handler stays
    open while a request is in it.
    """

    log: Logger
    closers: Closers
    starters: Starters
    shared: SharedByHandlers
    dependencies: Dependencies = msgspec.field(default_factory=Dependencies)
    effects: list[Callable[[], Awaitable[list[Gate]]]] = msgspec.field(default_factory=list)
    occupied: Callable[[Forward], Forward] = _as_it_is

    @property
    def metrics(self) -> HandlerMetrics | None:
        """Metrics of the process, if they are enabled."""
        return self.shared.metrics


Handle = Callable[[Delivery], Awaitable[Answer]]


def recorded_handle(
    door: Door[ContextT], queue_name: Callable[[ContextT], str], forward: Forward, parts: Parts
) -> Handle:
    """A function that decodes, forwards, settles and records a delivery."""
    metrics = (parts.metrics.door, parts.metrics.queue_of) if parts.metrics else None
    recorder = DeliveryRecorder(queue_name, parts.log, metrics)
    return lambda delivery: handle(door, delivery, forward, recorder)
