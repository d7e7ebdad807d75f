"""Build the gates of queues, pools and subscriptions, with shared sources."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec
from msgspec.structs import replace

from handlers.contract.errors import SettingFaults
from handlers.gates.gate import Gate, GateState
from handlers.gates.sources import FeedOptions, Feeds, GateSources, HttpText
from handlers.redis_store.connection import Store, connect
from handlers.redis_store.limits.gate_store import RedisGateStore
from handlers.settings.settings import Settings
from handlers.telemetry.logs import get_logger
from handlers.wiring.credentials import file_token, prometheus_tls, redis_options


def prometheus_http(settings: Settings) -> HttpText:
    """HTTP client with the credentials for Prometheus. Raises `InvalidSetting` for unreadable files."""
    token = file_token("PROMETHEUS_TOKEN_FILE", settings.env.prometheus_token_file)
    return HttpText(token, prometheus_tls(settings))


Place: TypeAlias = tuple[str, str]
"""The owner of a gate: ("pool", id), ("queue", name) or ("subscription", name)."""


class GateEntry(msgspec.Struct, frozen=True):
    """A gate in the settings; errors name its entry's path `setting`."""

    gate_type: str
    gate_params: Mapping[str, Any]
    setting: str
    pool: str


class PlacedGate(msgspec.Struct, frozen=True):
    """A gate and the settings that it was built from."""

    gate: Gate
    gate_type: str
    gate_params: Mapping[str, Any]
    pool: str

    def is_of(self, entry: GateEntry) -> bool:
        return (self.gate_type, self.gate_params, self.pool) == (
            entry.gate_type,
            entry.gate_params,
            entry.pool,
        )


class GateChanges(msgspec.Struct):
    """The places whose gates have changed, and `discarded` gates to close later."""

    places: set[Place] = msgspec.field(default_factory=set)
    discarded: list[Gate] = msgspec.field(default_factory=list)


class PlacedGates:
    """Gates of a process by place, and their sources.

    A reload changes gates in place, so that requests in flight count against the new limits.
    """

    def __init__(self, settings: Settings, entries: Mapping[Place, GateEntry] | None = None) -> None:
        """Raises `InvalidSetting` for an invalid entry."""
        env = settings.env
        self._redis_options = redis_options(settings)
        self._connections: dict[str, Store] = {}
        self._stores: dict[str, RedisGateStore] = {}
        log = get_logger("gates")
        options = FeedOptions(
            refresh_seconds=env.gate_refresh_seconds, timeout_seconds=env.gate_source_timeout_seconds
        )
        self._sources = GateSources(
            feeds=Feeds(options, log),
            http=HttpText(),
            prometheus_http=prometheus_http(settings),
            stores=self._store_at,
            log=log,
            prometheus_url=env.prometheus_url,
        )
        self._placed: dict[Place, PlacedGate] = {}
        self._placed = self.prepared(entries or {})

    def at(self, place: Place) -> list[Gate]:
        """The gate of a place as a list, or an empty list."""
        placed = self._placed.get(place)
        return [] if placed is None else [placed.gate]

    def prepared(self, entries: Mapping[Place, GateEntry]) -> dict[Place, PlacedGate]:
        """The gates for `entries`: current ones, or new ones for changed entries.

        They take effect with `apply`. Raises one `InvalidSetting` with all invalid entries.
        """
        prepared, faults = dict[Place, PlacedGate](), SettingFaults()
        for place, entry in entries.items():
            if entry.gate_type:
                with faults.collected():
                    prepared[place] = self._unchanged(place, entry) or self._new(entry)
        faults.raise_all()
        return prepared

    def _unchanged(self, place: Place, entry: GateEntry) -> PlacedGate | None:
        placed = self._placed.get(place)
        return placed if placed is not None and placed.is_of(entry) else None

    def _new(self, entry: GateEntry) -> PlacedGate:
        from handlers.gates.registry import build_gate  # a poller without gates starts sooner

        sources = replace(self._sources, owner_pool=entry.pool)
        gate = build_gate(entry.gate_type, entry.gate_params, sources, entry.setting)
        return PlacedGate(gate, entry.gate_type, entry.gate_params, entry.pool)

    async def apply(self, prepared: Mapping[Place, PlacedGate]) -> GateChanges:
        """Put prepared gates in force."""
        changes = GateChanges()
        placed: dict[Place, PlacedGate] = {}
        for place, new in prepared.items():
            old = self._placed.get(place)
            if old is new:
                placed[place] = new
                continue
            changes.places.add(place)
            if old is None:
                await new.gate.start()
                placed[place] = new
            else:
                placed[place] = replace(new, gate=await old.gate.renewed(new.gate, changes.discarded))
        for place in self._placed.keys() - placed.keys():
            changes.places.add(place)
            changes.discarded.append(self._placed[place].gate)
        self._placed = placed
        return changes

    def are_available(self) -> bool:
        """Whether the sources of all gates are available."""
        return all(is_available(placed.gate.state()) for placed in self._placed.values())

    async def start(self) -> None:
        """Probe all sources; an unavailable source does not fail the start."""
        for placed in self._placed.values():
            await placed.gate.start()

    async def aclose(self) -> None:
        """Stop background readings and close connections."""
        for placed in self._placed.values():
            await placed.gate.aclose()
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
