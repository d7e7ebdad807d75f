"""Tracing is off and not even loaded without a receiver, and an endpoint that is none stops the start."""

from __future__ import annotations

import subprocess
import sys

import pytest

from handlers.app.tracing import tracing_of
from handlers.contract.errors import InvalidSetting
from handlers.settings.settings import load_settings

GATEWAY = {"IGW_BASE_URL": "http://127.0.0.1:1"}
BUILD = """
import sys
from handlers.app.handler import Handler
from handlers.app.poller import PollerApp
from handlers.settings.settings import load_settings
settings = load_settings({"IGW_BASE_URL": "http://127.0.0.1:1"})
Handler(settings, "dispatch")
PollerApp(settings)
assert "handlers.telemetry.tracing" not in sys.modules  # a library loads some of OpenTelemetry by itself
"""


def test_without_a_receiver_nothing_of_it_is_loaded() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BUILD], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("endpoint", ["collector:4317", "grpc://collector:4317", "http://", "x"])
def test_an_endpoint_that_is_no_url_stops_the_start(endpoint: str) -> None:
    settings = load_settings({**GATEWAY, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint})
    with pytest.raises(InvalidSetting, match="OTEL_EXPORTER_OTLP_ENDPOINT"):
        tracing_of(settings)
