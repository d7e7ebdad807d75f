"""Build the metrics and the tracing of a process, if enabled.

Handlers serve /metrics on the port of their door, which may be public, so /metrics requires a token of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import urlsplit

from handlers.contract.errors import InvalidSetting
from handlers.contract.masked_text import shown_value
from handlers.doors.auth.bearer import DispatchToken, DispatchTokenOptions
from handlers.doors.door import Answer
from handlers.settings.settings import Settings, check_url
from handlers.telemetry.logs import get_logger

if TYPE_CHECKING:
    from handlers.gates.gate import Gate
    from handlers.gates.waiting_room import WaitingRoom
    from handlers.telemetry.metrics import QueueMetrics
    from handlers.telemetry.tracing import Tracing


EVENTS = "events"
"""Queue label for all events of other sources, because the number of their names is unlimited."""


ShownPool: TypeAlias = "tuple[int, Sequence[Gate], WaitingRoom]"
"""Slots, gates and waiting room of a pool."""


class HandlerMetrics:
    """Metrics of a handler process: page, authenticator and series of queues."""

    def __init__(self, settings: Settings, target: str) -> None:
        from handlers.telemetry.metrics import DoorMetrics, Metrics

        self.metrics = Metrics()
        self.door = DoorMetrics(self.metrics, target)
        self.authenticator = _metrics_authenticator(settings)
        self._is_push = target == "pubsub_push"
        self._pools: dict[str, str] = {}
        self._ids: dict[str, str] = {}
        self._shown_pools: Mapping[str, ShownPool] = {}
        self.change(settings)
        self.metrics.watch(self._show_pools)

    def change(self, settings: Settings) -> None:
        """Show the subscriptions of these settings, and remove the gauges of others."""
        previous = {self.labels_of(name) for name in self._pools}
        self._pools = {topic.subscriber_id: topic.worker_pool_id for topic in settings.file.topics}
        self._ids = {topic.subscriber_id: topic.id or topic.subscriber_id for topic in settings.file.topics}
        for labels in previous - {self.labels_of(name) for name in self._pools}:
            self.metrics.forget_queue(labels)
        for name in self._pools if self._is_push else ("",):
            self.queue_of(name)

    def queue_of(self, name: str) -> QueueMetrics | None:
        """Series of a subscription; None for requests that a poller counts."""
        if self._is_push:
            return self.metrics.of_queue(*self.labels_of(name))
        return None if name else self.metrics.of_queue(EVENTS, EVENTS, "default")

    def labels_of(self, name: str) -> tuple[str, str, str]:
        return self._ids.get(name, name), name, self._pools.get(name, "default")

    def watch_gates(self, subscription: str, gates: Sequence[Gate]) -> None:
        """Show the gate of a subscription, if it has one."""
        self.metrics.forget_gate(*self.labels_of(subscription))
        for gate in gates:
            self.metrics.watch_gate(*self.labels_of(subscription), gate.state)

    def watch_pools(self, pools: Mapping[str, ShownPool]) -> None:
        """Show the slots, gates and waiting requests of these pools only."""
        for pool_id in self._shown_pools.keys() - pools.keys():
            self.metrics.forget_pool(pool_id)
        self._shown_pools = pools
        for pool_id, (_, gates, _) in pools.items():
            self.metrics.forget_gate("", "", pool_id)
            for gate in gates:
                self.metrics.watch_gate("", "", pool_id, gate.state)

    def _show_pools(self) -> None:
        for pool_id, (slots, gates, room) in self._shown_pools.items():
            budget = min((gate.budget() for gate in gates), default=1.0)
            self.metrics.pool(pool_id, slots, budget, room.held)

    def dead_lettered(self, subscription: str) -> None:
        """Count a dead-lettered delivery of a subscription."""
        queue = self.queue_of(subscription)
        if queue is not None:
            queue.dead_lettered(1)

    def page(self) -> Answer:
        from handlers.telemetry.metrics import CONTENT_TYPE

        return Answer(200, self.metrics.render(), {"content-type": CONTENT_TYPE})


def handler_metrics_of(settings: Settings, target: str) -> HandlerMetrics | None:
    """Metrics of a handler; None unless a token guards their page.

    Raises `InvalidSetting` for an invalid token.
    """
    env = settings.env
    return HandlerMetrics(settings, target) if env.metrics_token or env.metrics_token_file else None


def _metrics_authenticator(settings: Settings) -> DispatchToken:
    env = settings.env
    path = Path(env.metrics_token_file) if env.metrics_token_file else None
    return DispatchToken(DispatchTokenOptions(path=path, tokens=(env.metrics_token,), setting="METRICS_TOKEN"))


_SETTING = "OTEL_EXPORTER_OTLP_ENDPOINT"
_GRPC_PORT = 4317


def check_tracing(settings: Settings) -> None:
    """Raise `InvalidSetting` for an endpoint or protocol that traces cannot use."""
    env = settings.env
    if not env.otel_exporter_otlp_endpoint:
        return
    check_url(_SETTING, env.otel_exporter_otlp_endpoint, frozenset({"http", "https"}))
    if env.otel_exporter_otlp_protocol != "http/protobuf":
        raise InvalidSetting(
            "OTEL_EXPORTER_OTLP_PROTOCOL",
            found=env.otel_exporter_otlp_protocol[:40],
            accepted="http/protobuf, with the receiver's HTTP port (4318)",
        )


def tracing_of(settings: Settings) -> Tracing | None:
    """Tracer of this process, or None. Raises `InvalidSetting` for an invalid endpoint."""
    env = settings.env
    if not env.otel_exporter_otlp_endpoint:
        return None
    check_tracing(settings)
    if urlsplit(env.otel_exporter_otlp_endpoint).port == _GRPC_PORT:
        get_logger("tracing").warning(
            "OTLP endpoint looks like gRPC", setting=_SETTING, port=_GRPC_PORT, fix="use the HTTP port, 4318"
        )
    try:
        from handlers.telemetry.tracing import Tracing, TracingOptions
    except ImportError:
        accepted = "nothing, or `pip install 'async-processor[otel]'`"
        raise InvalidSetting(
            _SETTING,
            found=f"{shown_value(env.otel_exporter_otlp_endpoint)} without the OpenTelemetry SDK",
            accepted=accepted,
        ) from None
    return Tracing(TracingOptions(env.otel_exporter_otlp_endpoint, env.otel_service_name, version("async-processor")))
