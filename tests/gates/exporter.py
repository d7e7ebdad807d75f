"""A /metrics page with the metrics of a router and its model servers, which a test sets."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry, Gauge, generate_latest


class Exporter:
    """Gauges by name and labels; `status` other than 200 is an outage of the page."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.url = f"http://{address}/metrics"
        self.status = 200
        self.fetches = 0
        self._registry = CollectorRegistry()
        self._gauges: dict[str, Gauge] = {}

    def set(self, metric: str, value: float, **labels: str) -> None:
        if metric not in self._gauges:
            self._gauges[metric] = Gauge(metric, "of a test", list(labels), registry=self._registry)
        gauge = self._gauges[metric]
        (gauge.labels(**labels) if labels else gauge).set(value)

    def remove(self, metric: str) -> None:
        self._registry.unregister(self._gauges.pop(metric))

    def page(self) -> bytes:
        self.fetches += 1
        return generate_latest(self._registry)


@contextlib.contextmanager
def running_exporter() -> Iterator[Exporter]:
    """An exporter on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = exporter.page()
            self.send_response(exporter.status)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # stopped while it was reading
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        exporter = Exporter(f"127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield exporter
        finally:
            server.shutdown()
            thread.join()
