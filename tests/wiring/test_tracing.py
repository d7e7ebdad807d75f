"""Without a receiver, tracing is not even loaded; an invalid endpoint stops the start."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from starlette.requests import Request

from handlers.contract.errors import InvalidSetting
from handlers.settings.settings import load_settings
from handlers.telemetry.tracing import HTTP_REQUEST, PROCESS_REQUEST, Tracing, TracingOptions, traceparent
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


def test_without_a_receiver_no_tracing_module_is_loaded() -> None:
    done = subprocess.run([sys.executable, "-c", BUILD], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("endpoint", ["collector:4317", "grpc://collector:4317", "http://", "x"])
def test_an_invalid_endpoint_stops_the_start(endpoint: str) -> None:
    settings = load_settings({**GATEWAY, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint})
    with pytest.raises(InvalidSetting, match="OTEL_EXPORTER_OTLP_ENDPOINT"):
        tracing_of(settings)


async def test_a_push_is_one_trace_from_its_producer_to_the_gateway() -> None:
    trace, producer = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    with running_otlp_receiver() as receiver:
        async with running_raw_http() as gateway, running_broker() as broker:
            gateway.reply(answer(200, b"{}"))
            variables = {
                "IGW_BASE_URL": gateway.url,
                "PROJECT_ID": "project-1",
                "RESULT_TOPIC_ID": "results",
                "PUBSUB_EMULATOR_HOST": broker.host,
                "PUSH_AUTH": "none",
                "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
            }
            handler = Handler(load_settings(variables), "pubsub_push")
            assert (await handler.respond(_push({"traceparent": f"00-{trace}-{producer}-01"}))).status_code == 204
            await handler.aclose()
            sent = gateway.received[0].header("traceparent")
        # A close has little time, so the last export may end after it.
        await asyncio.to_thread(receiver.wait_for, PROCESS_REQUEST, 1)
        await asyncio.to_thread(receiver.wait_for, HTTP_REQUEST, 1)
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


@pytest.mark.parametrize("protocol", ["grpc", "http/json"])
def test_protocols_other_than_http_with_protobuf_are_refused(protocol: str) -> None:
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318",
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
    }
    with pytest.raises(InvalidSetting, match=f"OTEL_EXPORTER_OTLP_PROTOCOL.*4318.*{protocol}"):
        tracing_of(load_settings({**GATEWAY, **variables}))


@pytest.mark.parametrize("name", ["OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "REDIS_URL", "REQUEST_TOPIC_ID"])
def test_a_variable_that_is_not_utf_8_stops_the_start_and_is_named(name: str) -> None:
    value = os.fsdecode(b"service.name=a\xff")
    with pytest.raises(InvalidSetting, match=f"{name}: expected text in UTF-8, got bytes"):
        load_settings({**GATEWAY, name: value})


@contextlib.contextmanager
def running_grpc() -> Iterator[str]:
    """A gRPC server without services; yields its base URL."""
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@pytest.fixture
def one_span_an_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """One try an export too: the first pause before another, 0.8 s or more, is longer than the time limit."""
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.5")


async def _exported(url: str, caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings about the endpoint after two failed exports, each of one span."""
    caplog.clear()
    tracing = Tracing(TracingOptions(url, "service", "1"))
    for identity in "ab":
        with tracing.attempt(PROCESS_REQUEST, {}, identity, {}):
            pass
    await tracing.aclose()
    return [record.getMessage() for record in caplog.records if "OTLP endpoint" in record.getMessage()]


@pytest.mark.usefixtures("one_span_an_export")
async def test_a_receiver_that_answers_in_http2_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    with running_grpc() as url:
        assert await _exported(url, caplog) == ["OTLP endpoint answers in HTTP/2, as gRPC does"]


@pytest.mark.usefixtures("one_span_an_export")
async def test_a_receiver_that_answers_in_http1_or_not_at_all_is_not_taken_for_grpc(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running_raw_http() as receiver:
        receiver.reply(answer(400, b"no"), answer(400, b"no"), answer(400, b"no"))
        assert await _exported(receiver.url, caplog) == []
    assert await _exported("http://127.0.0.1:9", caplog) == []


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, "llm-d-async"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=mine"}, "mine"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "team=a"}, "llm-d-async"),
        ({"OTEL_SERVICE_NAME": "named"}, "named"),
        ({"OTEL_SERVICE_NAME": "named", "OTEL_RESOURCE_ATTRIBUTES": "service.name=mine"}, "named"),
    ],
)
async def test_the_service_name_of_the_sdks_variables_wins_over_our_default(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], name: str
) -> None:
    for variable in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    with running_otlp_receiver() as receiver:
        endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url}
        tracing = tracing_of(load_settings({**GATEWAY, **endpoint, **variables}))
        assert tracing is not None
        with tracing.attempt(PROCESS_REQUEST, {}, "a", {}):
            pass
        await tracing.aclose()
        await asyncio.to_thread(receiver.wait_for, PROCESS_REQUEST, 1)  # the last export may end after the close
    (span,) = receiver.named(PROCESS_REQUEST)
    assert span.service == name


async def test_a_disabled_sdk_sends_no_traceparent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    tracing = Tracing(TracingOptions("http://127.0.0.1:9", "service", "1"))
    with tracing.attempt(PROCESS_REQUEST, {}, "a", {}) as span:
        assert traceparent(span) == ""
    await tracing.aclose()
