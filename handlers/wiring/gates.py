"""Gates, built from the settings: one set of sources for a process, one gate for a queue or pool that names one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from handlers.gates.gate import Gate, GateState
from handlers.gates.registry import build_gate
from handlers.gates.sources import FeedOptions, Feeds, GateSources, HttpText
from handlers.redis_store.connection import RedisOptions, Store, connect
from handlers.redis_store.limits.gate_store import RedisGateStore
from handlers.settings.settings import Settings
from handlers.telemetry.logs import get_logger
from handlers.wiring.credentials import file_token, prometheus_tls


def prometheus_http(settings: Settings) -> HttpText:
    """A client with the credentials for Prometheus. Raises `InvalidSetting` for files that cannot be read."""
    token = file_token("PROMETHEUS_TOKEN_FILE", settings.env.prometheus_token_file)
    return HttpText(token, prometheus_tls(settings))


class ProcessGates:
    """Every gate of a process. `redis_options` are the credentials for stores that gates name by address."""

    def __init__(self, settings: Settings, redis_options: RedisOptions) -> None:
        env = settings.env
        self._redis_options = redis_options
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
        self._gates: list[Gate] = []

    def build(
        self, gate_type: str, gate_params: Mapping[str, Any], setting: str, pool: str = "default"
    ) -> list[Gate]:
        """The gate that an entry asks for, as a list: empty where it names none. Raises `InvalidSetting`.

        `pool` is the worker pool of that name, or of the entry.
        """
        if not gate_type:
            return []
        gate = build_gate(gate_type, gate_params, replace(self._sources, owner_pool=pool), setting)
        self._gates.append(gate)
        return [gate]

    def are_available(self) -> bool:
        """Whether every gate knows what it has to know."""
        return all(_is_available(gate.state()) for gate in self._gates)

    async def start(self) -> None:
        """Probe all sources; one that is down stops no start."""
        for gate in self._gates:
            await gate.start()

    async def aclose(self) -> None:
        """Stop background readings and close connections."""
        for gate in self._gates:
            await gate.aclose()
        await self._sources.http.aclose()
        await self._sources.prometheus_http.aclose()
        for redis in self._connections.values():
            await redis.aclose()

    def _store_at(self, address: str) -> RedisGateStore:
        """The store at `host:port` or a URL; the queues' own user and password are used for it."""
        url = address if "://" in address else f"redis://{address}"
        if url not in self._stores:
            self._connections[url] = connect(replace(self._redis_options, url=url))
            self._stores[url] = RedisGateStore(self._connections[url])
        return self._stores[url]


def _is_available(state: GateState) -> bool:
    return state.is_source_available and all(_is_available(one) for one in state.inner)
