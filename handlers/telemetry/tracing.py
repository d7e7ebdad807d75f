"""Spans over OTLP: one for each attempt at a request, and one for each HTTP call that it makes.

Loaded only where a receiver is named; without one nothing here runs. The names and attributes of the spans are
the reference's. What else the SDK's own variables say (`OTEL_TRACES_SAMPLER`, `OTEL_EXPORTER_OTLP_HEADERS`,
`OTEL_BSP_…`, `OTEL_RESOURCE_ATTRIBUTES`) holds as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from handlers.telemetry.logs import CurrentTrace, enter_trace

DEFAULT_SERVICE_NAME: Final = "llm-d-async"
PROCESS_REQUEST: Final = "process-request"
HANDLE_REQUEST: Final = "handle-request"
HTTP_REQUEST: Final = "http-request"
RE_ENQUEUE: Final = "re-enqueue"
_KINDS: Final = {PROCESS_REQUEST: SpanKind.CONSUMER, HANDLE_REQUEST: SpanKind.SERVER}

_propagator: Final = TraceContextTextMapPropagator()
_open_span: ContextVar[Span | None] = ContextVar("open_span", default=None)
_wanted_trace_id: ContextVar[int] = ContextVar("wanted_trace_id", default=0)


@dataclass(frozen=True, slots=True)
class TracingOptions:
    """`endpoint` is the receiver's base URL (OTLP over HTTP, `/v1/traces` is added)."""

    endpoint: str
    service_name: str
    version: str


class _Ids(RandomIdGenerator):
    """Random ids, but the trace id of a request whose producer gave none follows from the request."""

    def generate_trace_id(self) -> int:
        return _wanted_trace_id.get() or super().generate_trace_id()


class Tracing:
    """One process's tracer; `aclose` sends what is still waiting."""

    def __init__(self, options: TracingOptions) -> None:
        # Given attributes would win over OTEL_RESOURCE_ATTRIBUTES: the default name is given only if that has none.
        defaults = {"service.version": options.version}
        named = Resource.create().attributes.get("service.name", "")
        if options.service_name or str(named).startswith("unknown_service"):
            defaults["service.name"] = options.service_name or DEFAULT_SERVICE_NAME
        resource = Resource.create(defaults)
        self._provider = TracerProvider(resource=resource, id_generator=_Ids(), shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=f"{options.endpoint.rstrip('/')}/v1/traces")
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
        """The span of one attempt, `name` being one of the two above.

        `parent` may hold the producer's `traceparent`; else `identity`, which all attempts at a request
        share, decides the trace. `link_to` is the `traceparent` of the attempt before. The trace stays the
        current one of the task afterwards, which is the request's own, so that the lines logged about its
        outcome carry it.
        """
        context = _propagator.extract(parent, Context())
        links = [Link(before)] if (before := _span_context(link_to)) else []
        wanted = _wanted_trace_id.set(_trace_id(identity))
        try:
            span = self._tracer.start_span(name, context, _KINDS[name], dict(attributes), links)
        finally:
            _wanted_trace_id.reset(wanted)
        found = span.get_span_context()
        enter_trace(
            CurrentTrace(f"{found.trace_id:032x}", f"{found.span_id:016x}", found.trace_flags.sampled)
        )
        token = _open_span.set(span)
        try:
            yield span
        except asyncio.CancelledError:
            fail(span, "cancelled")
            raise
        finally:
            _open_span.reset(token)
            span.end()

    @contextmanager
    def call(self, attributes: Mapping[str, str | int]) -> Iterator[Span]:
        """The span of one HTTP request, below the attempt that makes it."""
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
        """A moment: the request goes back to wait, linked to the attempt that failed."""
        links = [Link(after.get_span_context())]
        context = trace.set_span_in_context(after, Context())
        self._tracer.start_span(RE_ENQUEUE, context, SpanKind.PRODUCER, dict(attributes), links).end()

    async def aclose(self) -> None:
        """Send what waits, for as long as the caller waits; a receiver that is silent holds no exit up.

        The SDK sends all that waits before it looks at any time limit of its own, so it does that in a thread which the
        end of the process does not wait for.
        """
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits any more
                loop.call_soon_threadsafe(done.set)

        threading.Thread(target=shut_down, name="tracing-shutdown", daemon=True).start()
        await done.wait()


def traceparent(span: Span) -> str:
    """A span's context as W3C writes it."""
    carrier = dict[str, str]()
    _propagator.inject(carrier, trace.set_span_in_context(span, Context()))
    return carrier.get("traceparent", "")


def fail(span: Span, category: str) -> None:
    """Mark an attempt as failed, with the word that metrics and logs use for it."""
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
