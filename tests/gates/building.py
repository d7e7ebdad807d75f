"""Gates built as the app builds them, with a log that can be read and a clock that can be moved."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from handlers.clock import steady_time
from handlers.contract.request import Request
from handlers.gates.gate import Gate
from handlers.gates.registry import build_gate
from handlers.gates.sources import FeedOptions, Feeds, GateSources, HttpText
from handlers.redis_store.limits.limits import RedisGateStore
from handlers.telemetry.logs import Logger


class ReadableLog(Logger):
    """Keeps log events: (level, event, fields)."""

    def __init__(self) -> None:
        super().__init__("test")
        self.lines: list[tuple[str, str, dict[str, Any]]] = []

    def info(self, event: str, **fields: Any) -> None:
        self.lines.append(("info", event, fields))

    def warning(self, event: str, **fields: Any) -> None:
        self.lines.append(("warning", event, fields))

    def lines_of(self, event: str) -> list[dict[str, Any]]:
        return [fields for _, name, fields in self.lines if name == event]


class Clock:
    """A clock that a test advances."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def no_store(address: str) -> RedisGateStore:
    raise AssertionError(f"this gate asked for a store at {address}")


def sources(
    *,
    prometheus_url: str = "",
    stores: Callable[[str], RedisGateStore] = no_store,
    log: ReadableLog | None = None,
    clock: Callable[[], float] = steady_time,
    refresh_seconds: float = 0.05,
) -> GateSources:
    log = log or ReadableLog()
    options = FeedOptions(refresh_seconds=refresh_seconds, timeout_seconds=60)
    return GateSources(
        feeds=Feeds(options, log, clock),
        http=(http := HttpText()),
        prometheus_http=http,
        stores=stores,
        log=log,
        prometheus_url=prometheus_url,
        clock=clock,
        jitter=lambda: 0.5,
    )


def gate(gate_type: str, params: Mapping[str, Any] | None = None, given: GateSources | None = None) -> Gate:
    return build_gate(gate_type, params or {}, given or sources(), "queues[0]")


def request(
    request_id: str = "r1",
    *,
    token: str = "t1",
    labels: Mapping[str, str] | None = None,
    user: str | None = "alice",
    deadline: float | None = None,
) -> Request:
    return Request(
        id=request_id,
        deadline=time.time() + 600 if deadline is None else deadline,
        payload=b"{}",
        metadata={} if user is None else {"userid": user},
        labels=labels or {},
        request_token=token,
    )
