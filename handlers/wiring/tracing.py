"""Tracing's wiring: on where `OTEL_EXPORTER_OTLP_ENDPOINT` names a receiver, else not even loaded."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from handlers.contract.errors import InvalidSetting
from handlers.settings.settings import Settings

if TYPE_CHECKING:
    from handlers.telemetry.tracing import Tracing

_SETTING = "OTEL_EXPORTER_OTLP_ENDPOINT"


def tracing_of(settings: Settings) -> Tracing | None:
    """This process's tracer, or None. Raises `InvalidSetting` for an endpoint that is none."""
    env = settings.env
    if not env.otel_exporter_otlp_endpoint:
        return None
    parts = urlsplit(env.otel_exporter_otlp_endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidSetting(_SETTING, found="no such URL", accepted="http://host:4318 (OTLP over HTTP)")
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
