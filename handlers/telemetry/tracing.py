"""Traces over OTLP: a span per attempt, and one per HTTP call.

Loaded only if a receiver is configured. Names and attributes of the spans are those of `llm-d-async`. The variables of
the OpenTelemetry SDK apply too (`OTEL_TRACES_SAMPLER`, `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_BSP_…`,
`OTEL_RESOURCE_ATTRIBUTES`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final
from urllib.parse import urlsplit

import msgspec
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from handlers.telemetry.logs import CurrentTrace, current_trace, get_logger

DEFAULT_SERVICE_NAME: Final = "llm-d-async"
GRPC_PORT: Final = 4317
"""Default port for OTLP over gRPC."""
_CHECK_SECONDS: Final = 5.0
_FRAME_HEAD_BYTES: Final = 9
"""Length (3), type (1), flags (1) and stream (4) of an HTTP/2 frame."""
_SETTINGS_FRAME: Final = b"\x04"
PROCESS_REQUEST: Final = "process-request"
HANDLE_REQUEST: Final = "handle-request"
HTTP_REQUEST: Final = "http-request"
RE_ENQUEUE: Final = "re-enqueue"
_KINDS: Final = {PROCESS_REQUEST: SpanKind.CONSUMER, HANDLE_REQUEST: SpanKind.SERVER}

_propagator: Final = TraceContextTextMapPropagator()
_open_span: ContextVar[Span | None] = ContextVar("open_span", default=None)
_wanted_trace_id: ContextVar[int] = ContextVar("wanted_trace_id", default=0)


class TracingOptions(msgspec.Struct, frozen=True):
    """Receiver and names.

    `endpoint` is the base URL of a receiver of OTLP over HTTP; `/v1/traces` is appended.
    """

    endpoint: str
    service_name: str
    version: str


class _Ids(RandomIdGenerator):
    """Random ids, except trace ids derived from a request.

    They are for requests whose producer sent no trace context.
    """

    def generate_trace_id(self) -> int:
        return _wanted_trace_id.get() or super().generate_trace_id()


class _Exporter(OTLPSpanExporter):
    """Exporter that warns once if the receiver speaks gRPC only."""

    def __init__(self, url: str) -> None:
        super().__init__(endpoint=url)
        self._url = url
        self._is_checked = urlsplit(url).port == GRPC_PORT  # the warning about that port was logged at the start

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = super().export(spans)
        if result is SpanExportResult.FAILURE and not self._is_checked:
            self._is_checked = True
            if answers_in_http2(self._url):
                get_logger("tracing").warning(
                    "OTLP endpoint answers in HTTP/2, as gRPC does",
                    setting="OTEL_EXPORTER_OTLP_ENDPOINT",
                    fix="use the receiver's port for OTLP over HTTP, usually 4318",
                )
        return result


def answers_in_http2(url: str) -> bool:
    """Whether a server answers an HTTP/1.1 request with an HTTP/2 frame.

    Such a server speaks gRPC only; its first frame is SETTINGS (RFC 9113, section 3.4).
    """
    parts = urlsplit(url)
    host, is_secure = parts.hostname or "", parts.scheme == "https"
    head = b""
    try:
        with socket.create_connection((host, parts.port or (443 if is_secure else 80)), _CHECK_SECONDS) as plain:
            link = ssl.create_default_context().wrap_socket(plain, server_hostname=host) if is_secure else plain
            link.sendall(f"POST {parts.path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n".encode())
            while len(head) < _FRAME_HEAD_BYTES and (part := link.recv(_FRAME_HEAD_BYTES - len(head))):
                head += part
    except OSError:
        return False
    return head[3:4] == _SETTINGS_FRAME and head[5:] == bytes(4)


class Tracing:
    """Tracer of a process; `aclose` exports the remaining spans."""

    def __init__(self, options: TracingOptions) -> None:
        # Attributes given here win over OTEL_RESOURCE_ATTRIBUTES, so give the default name only if that has no name.
        defaults = {"service.version": options.version}
        named = Resource.create().attributes.get("service.name", "")
        if options.service_name or str(named).startswith("unknown_service"):
            defaults["service.name"] = options.service_name or DEFAULT_SERVICE_NAME
        resource = Resource.create(defaults)
        self._provider = TracerProvider(resource=resource, id_generator=_Ids(), shutdown_on_exit=False)
        exporter = _Exporter(f"{options.endpoint.rstrip('/')}/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("async-processor", options.version)

    @contextmanager
    def attempt(
        self,
        name: str,
        parent: Mapping[str, str],
        identity: str,
        attributes: Mapping[str, str | int],
        link_to: str = "",
    ) -> Iterator[Span]:
        """Open the span of one attempt, named `PROCESS_REQUEST` or `HANDLE_REQUEST`.

        `parent` may hold the producer's `traceparent`; otherwise the trace id is derived from `identity`, which all
        attempts at a request share. `link_to` is the `traceparent` of the previous attempt. Afterwards the trace stays
        current in the request's task, so that log lines about the outcome have it.
        """
        context = _propagator.extract(parent, Context())
        links = [Link(before)] if (before := _span_context(link_to)) else []
        wanted = _wanted_trace_id.set(_trace_id(identity))
        try:
            span = self._tracer.start_span(name, context, _KINDS[name], dict(attributes), links)
        finally:
            _wanted_trace_id.reset(wanted)
        found = span.get_span_context()
        current_trace.set(CurrentTrace(f"{found.trace_id:032x}", f"{found.span_id:016x}", found.trace_flags.sampled))
        token = _open_span.set(span)
        try:
            yield span
        except asyncio.CancelledError:
            mark_failed(span, "cancelled")
            raise
        finally:
            _open_span.reset(token)
            span.end()

    @contextmanager
    def call(self, attributes: Mapping[str, str | int]) -> Iterator[Span]:
        """Open the span of one HTTP call, below the current attempt's."""
        span = self._tracer.start_span(HTTP_REQUEST, _below_open(), SpanKind.CLIENT, dict(attributes))
        try:
            yield span
        except BaseException as error:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(Status(StatusCode.ERROR))
            raise
        finally:
            span.end()

    def re_enqueued(self, after: Span, attributes: Mapping[str, str | int | float]) -> None:
        """Record that a request returns to its queue after a failed attempt."""
        links = [Link(after.get_span_context())]
        context = trace.set_span_in_context(after, Context())
        self._tracer.start_span(RE_ENQUEUE, context, SpanKind.PRODUCER, dict(attributes), links).end()

    async def aclose(self) -> None:
        """Export the remaining spans.

        Cancel the call to stop waiting for a silent receiver. The SDK checks its timeout only after it has exported
        everything, so it runs in a daemon thread, which does not delay the end of the process.
        """
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop is already closed, and nothing waits for this event
                loop.call_soon_threadsafe(done.set)

        threading.Thread(target=shut_down, name="tracing-shutdown", daemon=True).start()
        await done.wait()


def traceparent(span: Span) -> str:
    """The W3C `traceparent` header for a span."""
    carrier = dict[str, str]()
    _propagator.inject(carrier, trace.set_span_in_context(span, Context()))
    return carrier.get("traceparent", "")


def mark_failed(span: Span, category: str) -> None:
    """Mark an attempt's span as failed; `category` is the reason in metrics."""
    span.set_attribute("error.category", category)
    span.set_status(Status(StatusCode.ERROR))


def _below_open() -> Context:
    span = _open_span.get()
    return trace.set_span_in_context(span, Context()) if span is not None else Context()


def _span_context(header: str) -> SpanContext | None:
    found = trace.get_current_span(_propagator.extract({"traceparent": header}, Context())).get_span_context()
    return found if found.is_valid else None


def _trace_id(identity: str) -> int:
    return int.from_bytes(hashlib.sha256(identity.encode("utf-8", "backslashreplace")).digest()[:16])
