"""A receiver of OTLP over HTTP: decodes OpenTelemetry's protocol buffers and keeps every span."""

from __future__ import annotations

import contextlib
import gzip
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from tests.waiting import wait_until


@dataclass(frozen=True)
class ReceivedSpan:
    """One span, ids in hexadecimal; `parent_id` is empty for a root."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    is_error: bool
    attributes: dict[str, str | int | float | bool]
    links: tuple[tuple[str, str], ...]


@dataclass
class OtlpReceiver:
    """The spans received so far."""

    url: str
    spans: list[ReceivedSpan] = field(default_factory=list)

    def named(self, name: str, request_id: str = "") -> list[ReceivedSpan]:
        """Spans with that name, optionally of one request; one that was exported twice counts once."""
        found = {span.span_id: span for span in list(self.spans) if span.name == name}.values()
        return [span for span in found if not request_id or span.attributes.get("request.id") == request_id]

    def wait_for(self, name: str, count: int, request_id: str = "") -> list[ReceivedSpan]:
        """The first `count` spans of that name; exporters send every few seconds."""
        wait_until(lambda: len(self.named(name, request_id)) >= count, what=f"{count} {name}")
        return self.named(name, request_id)[:count]


def _value(value: AnyValue) -> str | int | float | bool:
    kind = value.WhichOneof("value")
    assert kind in ("string_value", "int_value", "double_value", "bool_value"), kind
    found: str | int | float | bool = getattr(value, kind)
    return found


def _spans(body: bytes) -> Iterator[ReceivedSpan]:
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        about = {one.key: _value(one.value) for one in resource.resource.attributes}
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield ReceivedSpan(
                    str(about["service.name"]),
                    span.name,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    span.kind,
                    span.status.code == span.status.STATUS_CODE_ERROR,
                    {one.key: _value(one.value) for one in span.attributes},
                    tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
                )


@contextlib.contextmanager
def running_otlp_receiver() -> Iterator[OtlpReceiver]:
    """A receiver on a free port."""
    receiver = OtlpReceiver("")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the name that the server requires
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            assert self.path == "/v1/traces"
            receiver.spans.extend(_spans(body))
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_args: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))  # seconds until it sees its end
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
