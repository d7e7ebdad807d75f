"""The gates of doors whose deliveries come by themselves: Pub/Sub pushes, and events of other sources."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from handlers.forward.forward import Forward, Limits
from handlers.forward.outcome import Outcome
from handlers.settings.settings import Settings
from handlers.telemetry.dependencies import GATES
from handlers.wiring.parts import Parts

if TYPE_CHECKING:
    from handlers.contract.request import Request
    from handlers.forward.middleware.held import HeldForward
    from handlers.gates.gate import Gate
    from handlers.gates.waiting_room import WaitingRoom

_EVENT_HOLD_SECONDS: Final = 30.0
"""How long an event waits at a closed gate before its source is told 429: shorter than sources wait for answers."""
_DEFAULT_POOL: Final = "default"


def held_pushes(settings: Settings, forward: Forward, parts: Parts) -> Forward:
    """Forwarding through the gates of subscriptions and of their pools, where they name any."""
    parts.holding.entry = forward
    topics, pools = settings.file.topics, {pool.id: pool for pool in settings.pools}
    if not any(topic.gate_type or pools[topic.worker_pool_id].gate_type for topic in topics):
        return forward
    from handlers.forward.middleware.held import Entrance, HeldForward
    from handlers.wiring.gates import ProcessGates
    from handlers.wiring.redis_options import redis_options

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
    from handlers.wiring.gates import ProcessGates
    from handlers.wiring.redis_options import redis_options

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
