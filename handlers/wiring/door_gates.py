"""Gates of Pub/Sub pushes and of other sources' events.

`DoorGates` outlives a reload of the configuration: gates, slots and waiting requests stay and get the new options.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from handlers.contract.request import Request
from handlers.forward.forward import AttemptOptions, Forward
from handlers.forward.middleware.admission import Entrance, HeldForward
from handlers.forward.outcome import Outcome
from handlers.gates.gate import Gate
from handlers.gates.waiting_room import WaitingRoom
from handlers.settings.settings import Settings
from handlers.wiring.gates import GateEntry, GateOwner, OwnedGate, ProcessGates
from handlers.wiring.metrics import HandlerMetrics

_DEFAULT_POOL: Final = "default"


class GatePlan(msgspec.Struct, frozen=True):
    """Gates and waiting rooms that the settings require, not yet in force.

    `slots` has the slots of each waiting room, `entrances` the rooms of each subscription in order, `default` those of
    all other names.
    """

    gates: Mapping[GateOwner, OwnedGate] = msgspec.field(default_factory=dict)
    slots: Mapping[GateOwner, int] = msgspec.field(default_factory=dict)
    entrances: Mapping[str, Sequence[GateOwner]] = msgspec.field(default_factory=dict)
    default: Sequence[GateOwner] = ()


class DoorGates:
    """Gates, waiting rooms and waiting requests of one door."""

    def __init__(self, settings: Settings, forward: Forward, *, most_held_seconds: float) -> None:
        self._most_held = settings.env.gate_most_held
        self._gates = ProcessGates(settings)
        self._rooms: dict[GateOwner, WaitingRoom] = {}
        self._held = HeldForward(forward, {}, most_held_seconds=most_held_seconds)

    async def forward(self, request: Request, options: AttemptOptions) -> Outcome:
        return await self._held.forward(request, options)

    def push_plan(self, settings: Settings) -> GatePlan:
        """Gates of subscriptions and their pools. Raises `InvalidSetting`."""
        pools = {pool.id: pool for pool in settings.pools}
        slots = {pool.id: pool.workers or settings.env.workers for pool in settings.pools}
        gates = {("pool", name): entry for name, entry in _pool_entries(settings).items()}
        rooms = {("pool", name): count for name, count in slots.items()}
        entrances: dict[str, list[GateOwner]] = {}
        for number, topic in enumerate(settings.file.topics):
            pool: GateOwner = ("pool", pools[topic.worker_pool_id].id)
            entrances[topic.subscriber_id] = [pool]
            if topic.gate_type:
                own: GateOwner = ("subscription", topic.subscriber_id)
                gates[own] = GateEntry(
                    topic.gate_type, topic.gate_params, f"topics[{number}]", topic.worker_pool_id
                )
                rooms[own] = slots[topic.worker_pool_id]
                entrances[topic.subscriber_id] = [own, pool]
        return GatePlan(self._gates.prepared(gates), rooms, entrances)

    def event_plan(self, settings: Settings) -> GatePlan:
        """The gate of the pool `default`. Raises `InvalidSetting`."""
        owner: GateOwner = ("pool", _DEFAULT_POOL)
        entry = _pool_entries(settings)[_DEFAULT_POOL]
        pool = next(pool for pool in settings.pools if pool.id == _DEFAULT_POOL)
        slots = {owner: pool.workers or settings.env.workers}
        return GatePlan(self._gates.prepared({owner: entry}), slots, default=[owner])

    async def apply(self, plan: GatePlan, forward: Forward) -> list[Gate]:
        """Put a plan in force. Waiting requests enter its gates and use `forward`.

        Returns the gates to close once the requests that they admitted have ended.
        """
        changes = await self._gates.apply(plan.gates)
        for owner, slots in plan.slots.items():
            gates = self._gates.at(owner)
            if owner in self._rooms:
                self._rooms[owner].change(gates, slots=slots, most_held=self._most_held)
            else:
                self._rooms[owner] = WaitingRoom(gates, slots=slots, most_held=self._most_held)
        entrances = {name: self._entrance(owners) for name, owners in plan.entrances.items()}
        self._held.change(forward, entrances, self._entrance(plan.default) if plan.default else None)
        for owner in [owner for owner in self._rooms if owner not in plan.slots]:
            # A room in use is kept, so that its requests count if its subscription or pool is configured again.
            if not self._rooms[owner].in_flight:
                await self._rooms.pop(owner).aclose()
        return changes.discarded

    def _entrance(self, owners: Sequence[GateOwner]) -> Entrance:
        gates = [gate for owner in owners for gate in self._gates.at(owner)]
        return Entrance([self._rooms[owner] for owner in owners], gates)

    def show(self, plan: GatePlan, metrics: HandlerMetrics) -> None:
        """Show the gates of subscriptions and pools in metrics."""
        pools = {}
        for name, owners in plan.entrances.items():
            metrics.watch_gates(name, self._gates.at(("subscription", name)))
            owner = owners[-1]
            pools[owner[1]] = (plan.slots[owner], self._gates.at(owner), self._rooms[owner])
        metrics.watch_pools(pools)

    def are_available(self) -> bool:
        return self._gates.are_available()

    async def aclose(self) -> None:
        """Stop background readings and close connections."""
        for room in self._rooms.values():
            await room.aclose()
        await self._gates.aclose()


def _pool_entries(settings: Settings) -> dict[str, GateEntry]:
    return {
        pool.id: GateEntry(pool.gate_type, pool.gate_params, f"pools[{number}]", pool.id)
        for number, pool in enumerate(settings.pools)
    }
