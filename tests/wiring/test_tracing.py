"""Tracing is off and not even loaded without a receiver, and an endpoint that is none stops the start."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from typing import Any

import pytest
from starlette.requests import Request

from handlers.contract.errors import InvalidSetting
from handlers.settings.settings import load_settings
from handlers.telemetry.tracing import HTTP_REQUEST, PROCESS_REQUEST
from handlers.wiring.handler import Handler
from handlers.wiring.metrics import tracing_of
from tests.servers.otlp import running_otlp_receiver
from tests.servers.pubsub_broker import running_broker
from tests.servers.raw_http import answer, running_raw_http

GATEWAY = {"IGW_BASE_URL": "http://127.0.0.1:1"}
BUILD = """
import sys
from handlers.wiring.handler import Handler
from handlers.wiring.poller import PollerApp
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


async def test_a_push_is_one_trace_from_its_producer_to_the_gateway() -> None:
    trace, producer = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    with running_otlp_receiver() as receiver:
        async with running_raw_http() as gateway, running_broker() as broker:
            gateway.say(answer(200, b"{}"))
            variables = {
                "IGW_BASE_URL": gateway.url,
                "PROJECT_ID": "project-1",
                "RESULT_TOPIC_ID": "results",
                "PUBSUB_EMULATOR_HOST": broker.host,
                "PUSH_AUTH": "none",
                "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
            }
            handler = Handler(load_settings(variables), "pubsub_push")
            assert (
                await handler.respond(_push({"traceparent": f"00-{trace}-{producer}-01"}))
            ).status_code == 204
            await handler.aclose()
            sent = gateway.received[0].header("traceparent")
    (process,) = receiver.named(PROCESS_REQUEST)
    (call,) = receiver.named(HTTP_REQUEST)
    assert (process.trace_id, process.parent_id) == (trace, producer)
    assert (call.trace_id, call.parent_id) == (trace, process.span_id)
    assert sent is not None
    assert sent.startswith(f"00-{trace}-{call.span_id}-")


def _push(attributes: dict[str, str]) -> Request:
    """A wrapped push whose publisher put the trace into the attributes."""
    body = b'{"id":"a","deadline":4000000000,"payload":{}}'
    message = {"data": base64.b64encode(body).decode(), "messageId": "7", "attributes": attributes}
    whole = json.dumps({"message": message, "subscription": "projects/project-1/subscriptions/s"}).encode()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": whole, "more_body": False}

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "query_string": b""}
    return Request(scope, receive)
