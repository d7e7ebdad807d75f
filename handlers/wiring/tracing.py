"""Tracing's wiring: on where `OTEL_EXPORTER_OTLP_ENDPOINT` names a receiver, else not even loaded."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from handlers.contract.errors import InvalidSetting
from handlers.settings.settings import Settings
from handlers.telemetry.logs import get_logger

if TYPE_CHECKING:
    from handlers.telemetry.tracing import Tracing

_SETTING = "OTEL_EXPORTER_OTLP_ENDPOINT"
_GRPC_PORT = 4317


def tracing_of(settings: Settings) -> Tracing | None:
    """This process's tracer, or None. Raises `InvalidSetting` for an endpoint that is none."""
    env = settings.env
    if not env.otel_exporter_otlp_endpoint:
        return None
    parts = urlsplit(env.otel_exporter_otlp_endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidSetting(_SETTING, found="no such URL", accepted="http://host:4318 (OTLP over HTTP)")
    if env.otel_exporter_otlp_protocol != "http/protobuf":
        raise InvalidSetting(
            "OTEL_EXPORTER_OTLP_PROTOCOL",
            found=env.otel_exporter_otlp_protocol[:40],
            accepted="http/protobuf, with the receiver's HTTP port (4318)",
        )
    if parts.port == _GRPC_PORT:
        get_logger("tracing").warning(
            "OTLP endpoint looks like gRPC", setting=_SETTING, port=_GRPC_PORT, fix="use the HTTP port, 4318"
        )
    try:
        from handlers.telemetry.tracing import Tracing, TracingOptions
    except ImportError:
        accepted = "nothing, or the package installed with its extra `otel`"
        raise InvalidSetting(
            _SETTING, found="a receiver, but no OpenTelemetry SDK", accepted=accepted
        ) from None
    return Tracing(
        TracingOptions(env.otel_exporter_otlp_endpoint, env.otel_service_name, version("async-processor"))
    )
