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
from handlers.redis_store.limits.limits import RedisGateStore
from handlers.settings.settings import Settings
from handlers.telemetry.logs import get_logger
from handlers.wiring.credentials import file_token, prometheus_tls, redis_options


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


class OwnedGate(msgspec.Struct, frozen=True):
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

    owners: set[GateOwner] = msgspec.field(default_factory=set)
    discarded: list[Gate] = msgspec.field(default_factory=list)


class ProcessGates:
    """Gates of a process by place, and their sources.

    A reload changes gates in place, so that requests in flight count against the new limits.
    """

    def __init__(self, settings: Settings, entries: Mapping[GateOwner, GateEntry] | None = None) -> None:
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
        self._owned: dict[GateOwner, OwnedGate] = {}
        self._owned = self.prepared(entries or {})

    def at(self, owner: GateOwner) -> list[Gate]:
        """The gate of a place as a list, or an empty list."""
        owned = self._owned.get(owner)
        return [] if owned is None else [owned.gate]

    def prepared(self, entries: Mapping[GateOwner, GateEntry]) -> dict[GateOwner, OwnedGate]:
        """The gates for `entries`: current ones, or new ones for changed entries.

        They take effect with `apply`. Raises one `InvalidSetting` with all invalid entries.
        """
        prepared, faults = dict[GateOwner, OwnedGate](), SettingFaults()
        for owner, entry in entries.items():
            if entry.gate_type:
                with faults.collected():
                    prepared[owner] = self._unchanged(owner, entry) or self._new(entry)
        faults.raise_all()
        return prepared

    def _unchanged(self, owner: GateOwner, entry: GateEntry) -> OwnedGate | None:
        owned = self._owned.get(owner)
        return owned if owned is not None and owned.is_of(entry) else None

    def _new(self, entry: GateEntry) -> OwnedGate:
        from handlers.gates.registry import build_gate  # a poller without gates starts sooner

        sources = replace(self._sources, owner_pool=entry.pool)
        gate = build_gate(entry.gate_type, entry.gate_params, sources, entry.setting)
        return OwnedGate(gate, entry.gate_type, entry.gate_params, entry.pool)

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
