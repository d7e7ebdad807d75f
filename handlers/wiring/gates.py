"""Build the gates of queues, pools and subscriptions, with shared sources.

`DoorGates` outlives a reload of the configuration: gates, slots and waiting requests stay and get the new options.
Keys and labels that gates use are reserved: requests may not use them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import msgspec
from msgspec.structs import replace

from handlers.contract.errors import SettingFaults
from handlers.contract.request import Request
from handlers.forward.forward import AttemptOptions, Forward
from handlers.forward.middleware.admission import Entrance, HeldForward
from handlers.forward.outcome import Outcome
from handlers.gates.gate import CLASSIFICATION, TIER, Gate
from handlers.gates.sources import FeedOptions, Feeds, GateSources, HttpText
from handlers.gates.waiting_room import WaitingRoom
from handlers.redis_store.connection import Store, connect
from handlers.redis_store.keys import ReservedNames
from handlers.redis_store.limits.limits import RedisGateStore
from handlers.settings.config_file import PoolEntry, QueueEntry, TopicEntry
from handlers.settings.settings import Settings
from handlers.telemetry.dependencies import GateState
from handlers.telemetry.logs import get_logger
from handlers.wiring.credentials import file_token, prometheus_tls, redis_options
from handlers.wiring.metrics import HandlerMetrics


def prometheus_http(settings: Settings) -> HttpText:
    """HTTP client with the credentials for Prometheus. Raises `InvalidSetting` for unreadable files."""
    token = file_token("PROMETHEUS_TOKEN_FILE", settings.env.prometheus_token_file)
    return HttpText(token, prometheus_tls(settings))


GateOwner: TypeAlias = tuple[str, str]
"""The owner of a gate: ("pool", id), ("queue", name) or ("subscription", name)."""


class GateEntry(msgspec.Struct, frozen=True):
    """A gate in the settings; errors name its entry's path `setting`."""

    gate_type: str
    gate_params: Mapping[str, Any]
    setting: str
    pool: str

    @property
    def options(self) -> tuple[str, Mapping[str, Any], str]:
        """What the gate is built from."""
        return self.gate_type, self.gate_params, self.pool


def gate_entries(settings: Settings, *kinds: str) -> dict[GateOwner, GateEntry]:
    """The gates in the settings by place; with `kinds`, only those of these kinds of owners."""
    entries: list[tuple[GateOwner, str, PoolEntry | QueueEntry | TopicEntry, str]] = [
        *((("pool", one.id), f"pools[{at}]", one, one.id) for at, one in enumerate(settings.pools)),
        *(
            (("queue", one.queue_name), f"queues[{at}]", one, one.worker_pool_id)
            for at, one in enumerate(settings.queues)
        ),
        *(
            (("subscription", one.subscriber_id), f"topics[{at}]", one, one.worker_pool_id)
            for at, one in enumerate(settings.file.topics)
        ),
    ]
    return {
        owner: GateEntry(entry.gate_type, entry.gate_params, path, pool)
        for owner, path, entry, pool in entries
        if entry.gate_type and (not kinds or owner[0] in kinds)
    }


class OwnedGate(msgspec.Struct, frozen=True):
    """A gate and the `options` of its entry."""

    gate: Gate
    options: tuple[str, Mapping[str, Any], str]


class GateChanges(msgspec.Struct):
    """The owners whose gates have changed, and `discarded` gates to close later."""

    owners: set[GateOwner] = msgspec.field(default_factory=set)
    discarded: list[Gate] = msgspec.field(default_factory=list)


class ProcessGates:
    """Gates of a process by owner, and their sources.

    A reload changes gates in place, so that requests in flight count against the new limits.
    """

    def __init__(self, settings: Settings, entries: Mapping[GateOwner, GateEntry] | None = None) -> None:
        """Raises `InvalidSetting` for an invalid entry."""
        env = settings.env
        self._redis_options = redis_options(settings)
        self._connections: dict[str, Store] = {}
        self._stores: dict[str, RedisGateStore] = {}
        log = get_logger("gates")
        options = FeedOptions(refresh_seconds=env.gate_refresh_seconds, timeout_seconds=env.gate_source_timeout_seconds)
        self._sources = GateSources(
            feeds=Feeds(options, log),
            http=HttpText(),
            prometheus_http=prometheus_http(settings),
            stores=self._store_at,
            log=log,
            prometheus_url=env.prometheus_url,
        )
        self._owned: dict[GateOwner, OwnedGate] = {}
        self._owned = self.prepared(entries or {})

    def at(self, owner: GateOwner) -> list[Gate]:
        """The gate of an owner as a list, or an empty list."""
        owned = self._owned.get(owner)
        return [] if owned is None else [owned.gate]

    def prepared(self, entries: Mapping[GateOwner, GateEntry]) -> dict[GateOwner, OwnedGate]:
        """The gates for `entries`: current ones, or new ones for changed entries.

        They take effect with `apply`. Raises one `InvalidSetting` with all invalid entries.
        """
        prepared, faults = dict[GateOwner, OwnedGate](), SettingFaults()
        for owner, entry in entries.items():
            with faults.collected():
                owned = self._owned.get(owner)
                prepared[owner] = owned if owned and owned.options == entry.options else self._built(entry)
        faults.raise_all()
        return prepared

    def _built(self, entry: GateEntry) -> OwnedGate:
        from handlers.gates.registry import build_gate  # a poller without gates starts sooner

        sources = replace(self._sources, owner_pool=entry.pool)
        return OwnedGate(build_gate(entry.gate_type, entry.gate_params, sources, entry.setting), entry.options)

    async def apply(self, prepared: Mapping[GateOwner, OwnedGate]) -> GateChanges:
        """Put prepared gates in force."""
        changes = GateChanges()
        owned: dict[GateOwner, OwnedGate] = {}
        for owner, new in prepared.items():
            old = self._owned.get(owner)
            if old is new:
                owned[owner] = new
                continue
            changes.owners.add(owner)
            if old is None:
                await new.gate.start()
                owned[owner] = new
            else:
                owned[owner] = replace(new, gate=await old.gate.renewed(new.gate, changes.discarded))
        for owner in self._owned.keys() - owned.keys():
            changes.owners.add(owner)
            changes.discarded.append(self._owned[owner].gate)
        self._owned = owned
        return changes

    def are_available(self) -> bool:
        """Whether the sources of all gates are available."""
        return all(is_available(owned.gate.state()) for owned in self._owned.values())

    async def start(self) -> None:
        """Probe all sources; an unavailable source does not fail the start."""
        for owned in self._owned.values():
            await owned.gate.start()

    async def aclose(self) -> None:
        """Stop background readings and close connections."""
        for owned in self._owned.values():
            await owned.gate.aclose()
        await self._sources.http.aclose()
        await self._sources.prometheus_http.aclose()
        for redis in self._connections.values():
            await redis.aclose()

    def _store_at(self, address: str) -> RedisGateStore:
        """The store at `host:port` or a URL, with the queues' Redis credentials."""
        url = address if "://" in address else f"redis://{address}"
        if url not in self._stores:
            self._connections[url] = connect(replace(self._redis_options, url=url))
            self._stores[url] = RedisGateStore(self._connections[url])
        return self._stores[url]


def is_available(state: GateState) -> bool:
    """Whether the sources of a gate and its inner gates are available."""
    return state.is_source_available and all(is_available(one) for one in state.inner)


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
        rooms: dict[GateOwner, int] = {("pool", name): count for name, count in slots.items()}
        gates = gate_entries(settings, "pool", "subscription")
        entrances: dict[str, list[GateOwner]] = {}
        for topic in settings.file.topics:
            pool: GateOwner = ("pool", pools[topic.worker_pool_id].id)
            own: GateOwner = ("subscription", topic.subscriber_id)
            entrances[topic.subscriber_id] = [own, pool] if own in gates else [pool]
            if own in gates:
                rooms[own] = slots[topic.worker_pool_id]
        return GatePlan(self._gates.prepared(gates), rooms, entrances)

    def event_plan(self, settings: Settings) -> GatePlan:
        """The gate of the pool `default`. Raises `InvalidSetting`."""
        owner: GateOwner = ("pool", _DEFAULT_POOL)
        pool = next(pool for pool in settings.pools if pool.id == _DEFAULT_POOL)
        slots = {owner: pool.workers or settings.env.workers}
        return GatePlan(self._gates.prepared({owner: gate_entries(settings)[owner]}), slots, default=[owner])

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


KEY_SUFFIX: Final = "_key"
"""Suffix of gate parameters that hold a Redis key."""
PREFIX: Final = "prefix"
"""Gate parameter that holds a prefix of Redis keys."""
_CONTROL_KEY: Final = "control_key"
_TIER_LABEL: Final = "tier_label"


def reserved_names(names: Iterable[str], gate_params: Iterable[Mapping[str, Any]]) -> ReservedNames:
    """`names` (queues, retry set) and the keys in gate parameters."""
    keys, prefixes = set(names), set[str]()
    for parameters in gate_params:
        for name, value in _texts(parameters):
            if name == PREFIX:
                prefixes.add(value)
            elif name.endswith(KEY_SUFFIX):
                keys.add(value)
            if name == _CONTROL_KEY:
                keys.add(f"{value}:state")
    return ReservedNames(frozenset(keys), tuple(sorted(prefixes)))


def all_gate_params(settings: Settings) -> list[Mapping[str, Any]]:
    """Parameters of every gate in the configuration."""
    return [entry.gate_params for entry in gate_entries(settings).values()]


def withheld_labels(settings: Settings) -> frozenset[str]:
    """Labels that decide a request's priority and that `ALLOWED_LABELS` does not list."""
    named = {
        value for parameters in all_gate_params(settings) for name, value in _texts(parameters) if name == _TIER_LABEL
    }
    allowed = {name.strip() for name in settings.env.allowed_labels.split(",")}
    return frozenset({CLASSIFICATION, TIER, settings.tier_label, *named} - allowed)


def _texts(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Pairs of parameter name and value, for all values that are strings.

    Parameters of inner gates are included, also if an inner gate is JSON in a string.
    """
    match value:
        case Mapping():
            for inner_name, inner in value.items():
                yield from _texts(inner, str(inner_name))
        case list():
            for inner in value:
                yield from _texts(inner, name)
        case str() if value[:1] in ("{", "["):
            try:
                yield from _texts(json.loads(value), name)
            except (ValueError, RecursionError):
                yield name, value
        case str() if value:
            yield name, value
