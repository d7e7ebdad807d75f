"""Tracing layers: spans of attempts and of their HTTP calls.

They are used only if traces are exported.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import urlsplit

import msgspec
from opentelemetry.trace import Span

from handlers.contract.request import Request
from handlers.forward.forward import AttemptOptions, Forward, Sender
from handlers.forward.gateway import GatewayResponse
from handlers.forward.outcome import Answered, Outcome, Retry
from handlers.telemetry.tracing import PROCESS_REQUEST, Tracing, mark_failed, traceparent
from handlers.transport.connection import AskForRoom

_SERVER_ERROR = 500


class AttemptSpans:
    """Opens one span for each attempt; `queue_ids` maps queue names to ids."""

    def __init__(self, tracing: Tracing, name: str, queue_ids: Mapping[str, str] | None = None) -> None:
        self._tracing = tracing
        self._name = name
        self._queue_ids = queue_ids or {}

    async def __call__(self, request: Request, attempt: Callable[[], Awaitable[Outcome]]) -> Outcome:
        """Run `attempt` in a span of its own and return its outcome."""
        opened = self._tracing.attempt(
            self._name,
            request.metadata,
            f"{request.id}\0{request.request_token}\0{request.deadline}",
            self._attributes(request),
            request.previous_traceparent,
        )
        with opened as span:
            outcome = await attempt()
            self._judge(span, request, outcome)
        if isinstance(outcome, Retry):
            return msgspec.structs.replace(outcome, traceparent=traceparent(span))
        return outcome

    def _attributes(self, request: Request) -> dict[str, str | int]:
        return {
            "request.id": request.id,
            "queue.id": self._queue_ids.get(request.queue, request.queue),
            "queue.name": request.queue,
            "retry.count": request.attempt,
        }

    def _judge(self, span: Span, request: Request, outcome: Outcome) -> None:
        match outcome:
            case Answered(result):
                span.set_attribute("http.response.status_code", result.status_code)
                if result.error_code:
                    mark_failed(span, result.error_code)
            case Retry(delay_seconds=delay, reason=reason):
                mark_failed(span, reason)
                if self._name == PROCESS_REQUEST:
                    self._tracing.re_enqueued(
                        span, {"request.id": request.id, "retry.reason": reason, "retry.delay_seconds": round(delay, 3)}
                    )


def traced_forward(forward: Forward, spans: AttemptSpans) -> Forward:
    """The layer that opens a span for each attempt."""

    async def traced(request: Request, options: AttemptOptions) -> Outcome:
        return await spans(request, lambda: forward(request, options))

    return traced


class TracedSender:
    """A client that sends each call in a span of its own.

    With `event_too`, the context is also an attribute of the CloudEvent, since proxies may replace the HTTP header.
    """

    def __init__(self, sender: Sender, tracing: Tracing, *, event_too: bool = False) -> None:
        self._sender = sender
        self._tracing = tracing
        self._event_too = event_too

    async def send(
        self,
        url: str,
        headers: Mapping[str, str],
        body: bytes,
        until: float = math.inf,
        ask_for_room: AskForRoom | None = None,
    ) -> GatewayResponse:
        """POST and read the response, in a span below the attempt's."""
        parts = urlsplit(url)
        attributes: dict[str, str | int] = {
            "http.request.method": "POST",
            "server.address": parts.hostname or "",
            "server.port": parts.port or (443 if parts.scheme == "https" else 80),
            "url.path": parts.path or "/",
        }
        with self._tracing.call(attributes) as span:
            parent = traceparent(span)  # empty if the SDK is disabled: then the producer's own header stays
            own = {"traceparent": parent} if parent else {}
            if self._event_too and parent:
                own["ce-traceparent"] = parent
            response = await self._sender.send(url, {**headers, **own}, body, until, ask_for_room)
            span.set_attribute("http.response.status_code", response.status_code)
            if response.status_code >= _SERVER_ERROR:
                mark_failed(span, str(response.status_code))
            return response
