"""Send a request once within its time and classify the response.

Forwarding never raises for a bad response.

A request's own headers are untrusted. They must not change the framing of the message, choose a host or a worker,
imitate a proxy, or replace a header that the gateway trusts us to set. New gateway versions may trust new headers, so
only listed names are forwarded.
"""

from __future__ import annotations

import asyncio
import math
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Protocol

import httpx
import msgspec

from handlers.backoff import parse_retry_after, retry_delay
from handlers.contract.errors import InvalidRequest
from handlers.contract.request import Request
from handlers.contract.result import ErrorCode, answered_result, error_result
from handlers.forward.gateway import BAND_HEADROOM_HEADER, DROPPED_REASON_HEADER, QUEUE_DURATION_HEADER, GatewayResponse
from handlers.forward.outcome import (
    FAILURES,
    OWN_FAULTS,
    Answered,
    LastResponse,
    Outcome,
    Retry,
    failure_reason,
    is_final,
    status_reason,
)
from handlers.forward.route import DEFAULT_HEADERS, PRIORITY_HEADER, Route, Routes, gateway_url
from handlers.forward.transforms import Transform, transformed
from handlers.gates.gate import Feedback
from handlers.number_text import decimal
from handlers.transport.connection import AskForRoom
from handlers.transport.failures import UnusableResponse, connection_failure

MAX_REQUEST_HEADERS: Final = 32
MAX_VALUE_BYTES: Final = 1_024
MAX_TOTAL_BYTES: Final = 8_192
MAX_FAIRNESS_BYTES: Final = 256

_NAME = re.compile(r"[A-Za-z0-9-]{1,64}")
_VALUE = re.compile(r"[\x20-\x7e\t]*")
# Names of tenants may contain non-ASCII characters; header values may too (RFC 9110, 5.5).
_TENANT = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]*")
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_TRACE_FIELDS: Final = ("tracestate", "baggage")

NEVER: Final = frozenset(
    {
        # Hop by hop (RFC 9110, 7.6.1)
        *(
            "connection",
            "proxy-connection",
            "keep-alive",
            "te",
            "trailer",
            "transfer-encoding",
            "upgrade",
            "http2-settings",
        ),
        # Framing and addressing, which we write
        *("host", "content-length", "content-type", "content-encoding", "accept-encoding", "expect"),
        # The trace context, which we write
        *("traceparent", "tracestate", "baggage"),
    }
)
"""Headers that no setting can allow."""

FORBIDDEN: Final = frozenset(
    {
        # The identity of the caller
        *("authorization", "cookie", "set-cookie", "forwarded", "via", "x-real-ip"),
        *("x-http-method", "x-http-method-override", "x-method-override", "x-original-url", "x-rewrite-url"),
        # Headers for which the gateway trusts us
        *("x-llm-d-inference-objective", "x-gateway-inference-objective", "x-llm-d-inference-fairness-id"),
        *("x-gateway-inference-fairness-id", PRIORITY_HEADER),
    }
)
"""Headers that are forwarded only if the operator lists them in full, not by a prefix."""
FORBIDDEN_PREFIXES: Final = (
    "proxy-",
    "x-forwarded-",
    "x-envoy-",
    "x-prefiller-",
    "x-llm-d-",
    "x-gateway-",
    "x-goog-",
    "x-amzn-",
    "x-simulate",
)
_CREDENTIAL = re.compile(r"auth|cookie|token|secret|password|credential|api-?key|signature|cert|session|(^|-)user")
"""Headers that identify or authenticate a caller; forwarded only if listed in full."""
_ROUTING = re.compile(
    r"(^|-)(addr(ess)?|backend|cluster|destination|endpoint|fairness|forwarded|hosts?|ip|method|objective|origin(al)?"
    r"|pod|ports?|priority|proto(col)?|rewrite|rout(e|er|ing)|scheme|server|slo|target|tenant|upstream|ur[il])(-|$)"
)
"""Headers that may choose a server, a path or a priority; patterns of the operator do not list them."""


def allowed_headers(
    headers: Mapping[str, str], listed: Sequence[str] = DEFAULT_HEADERS, *, allow_authorization: bool = False
) -> dict[str, str]:
    """The request's own headers that `listed` allows, with names in lower case.

    A name in `listed` that ends in `*` is a prefix. Invalid values, and headers beyond the limits, are dropped.
    """
    allowed: dict[str, str] = {}
    total = 0
    for name, value in headers.items():
        lower = name.lower()
        is_allowed = (lower == "authorization" and allow_authorization) or _is_listed(lower, listed)
        if not is_allowed or not _is_sound(lower, value):
            continue
        total += len(lower) + len(value)
        if len(allowed) == MAX_REQUEST_HEADERS or total > MAX_TOTAL_BYTES:
            break
        allowed[lower] = value
    return allowed


def _is_sound(name: str, value: str) -> bool:
    return bool(_NAME.fullmatch(name)) and len(value) <= MAX_VALUE_BYTES and bool(_VALUE.fullmatch(value))


def _is_listed(name: str, listed: Sequence[str]) -> bool:
    if name in NEVER:
        return False
    if name in listed:
        return True
    if name in FORBIDDEN or name.startswith(FORBIDDEN_PREFIXES) or _CREDENTIAL.search(name):
        return False
    patterns = [known for known in listed if known.endswith("*") and name.startswith(known[:-1])]
    return any(known in DEFAULT_HEADERS or not _ROUTING.search(name) for known in patterns)


def gateway_headers(request: Request, route: Route) -> dict[str, str]:
    """All headers of a request to the gateway, except host and framing; ours replace the request's own."""
    headers = {"content-type": "application/json", "accept-encoding": "identity"}
    if request.headers:
        listed = route.allowed_headers
        own = allowed_headers(request.headers, listed, allow_authorization=route.allow_authorization)
        for ours in (route.objective_header, route.fairness_header.lower(), route.priority_header):
            if ours not in listed:
                own.pop(ours, None)
        headers.update(own)
    objective = request.objective or route.inference_objective
    if objective and _VALUE.fullmatch(objective):  # a request may name its own objective
        headers[route.objective_header] = objective
    tenant = request.metadata.get(route.fairness_attribute) if request.metadata else None
    if tenant and route.fairness_header and is_fairness_id(tenant):
        headers[route.fairness_header] = tenant
    if request.priority is not None:
        headers[route.priority_header] = str(request.priority)
    headers.update(trace_headers(request.metadata))
    return headers


def is_fairness_id(tenant: str) -> bool:
    """Whether a tenant name fits a header (1 to 256 valid bytes)."""
    return (
        0 < len(tenant) <= MAX_FAIRNESS_BYTES
        and tenant == tenant.strip()
        and bool(_TENANT.fullmatch(tenant))
        and (tenant.isascii() or len(tenant.encode()) <= MAX_FAIRNESS_BYTES)
    )


def trace_headers(metadata: Mapping[str, str]) -> dict[str, str]:
    """The producer's W3C trace context, if it is well-formed."""
    parent = metadata.get("traceparent") if metadata else None
    if not parent or not _TRACEPARENT.fullmatch(parent):
        return {}
    fields = {
        name: metadata[name]
        for name in _TRACE_FIELDS
        if name in metadata and len(metadata[name]) <= MAX_VALUE_BYTES and _VALUE.fullmatch(metadata[name])
    }
    return {"traceparent": parent, **fields}


class AttemptOptions(msgspec.Struct, frozen=True):
    """Options of one attempt, set by its caller.

    `seconds` limits the delivery (Pub/Sub's ack deadline less a margin); None: no limit. A nacked delivery is
    redelivered after `earliest_retry_seconds` at the earliest. `body` is the request as queued; a poller sends it to
    a handler. `ask_for_room` is called before a large response is read, `on_sending` once the gates have admitted the
    request.
    """

    seconds: float | None = None
    earliest_retry_seconds: float = 0.0
    body: bytes = b""
    ask_for_room: AskForRoom | None = None
    on_sending: Callable[[], None] | None = None


NO_OPTIONS = AttemptOptions()
_LONGEST_TYPE: Final = 256
"""Characters of the gateway's Content-Type that are kept."""
_NO_ANSWER = Feedback(None)

Forward = Callable[[Request, AttemptOptions], Awaitable[Outcome]]
"""One attempt at a request, or a layer around it; raises only when cancelled."""


class _Attempt(msgspec.Struct, frozen=True):
    """`expires_at` is the deadline on the event loop's clock: the computer's clock may be set during an attempt."""

    request: Request
    options: AttemptOptions
    expires_at: float


class Sender(Protocol):
    """An HTTP client for one POST; implemented by `Gateway`."""

    async def send(
        self,
        url: str,
        headers: Mapping[str, str],
        body: bytes,
        until: float = math.inf,
        ask_for_room: AskForRoom | None = None,
    ) -> GatewayResponse:
        """POST and read the response; raise `TimeoutError` at `until`.

        `until` is a time of the event loop's clock, after which nothing is sent. A large response is read once
        `ask_for_room` gives room.
        """
        ...


class Forwarder:
    """Sends requests along their routes.

    `keeps_bytes`: a response body that is not UTF-8 is also kept as base64. `transforms` may replace the payload.
    `clock` returns Unix seconds, `jitter` a random number in [0, 1). If no connection to a gateway is possible,
    `on_unreachable` is called with its base URL and the reason in words.
    """

    def __init__(
        self,
        gateway: Sender,
        routes: Routes,
        *,
        request_timeout_seconds: float,
        keeps_bytes: bool = False,
        transforms: Sequence[Transform] = (),
        clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
        on_unreachable: Callable[[str, str], None] = lambda _gateway, _reason: None,
    ) -> None:
        self._gateway = gateway
        self._on_unreachable = on_unreachable
        self._keeps_bytes = keeps_bytes
        self._transforms = transforms
        self._routes = routes
        self._request_timeout_seconds = request_timeout_seconds
        self._clock = clock
        self._jitter = jitter

    async def forward(self, request: Request, options: AttemptOptions = NO_OPTIONS) -> Outcome:
        """Make one attempt. A retry is returned only if it fits before the deadline."""
        now, left = asyncio.get_running_loop().time(), request.deadline - self._clock()
        if left <= 0:
            return expired(request, None)
        attempt = _Attempt(request, options, now + left)
        route = self._routes.of(request.queue)
        try:
            url = gateway_url(route.base_url, route.path, request.endpoint, route.allowed_paths, request.id)
            other = transformed(request, self._transforms) if self._transforms else None
            headers, content = gateway_headers(request, route), request.payload
        except InvalidRequest as error:
            return invalid(error, request.request_token)
        except ValueError as error:
            return not_sent(request, error)
        allowed = left if options.seconds is None else options.seconds
        until = now + min(left, self._request_timeout_seconds, allowed)
        if other is not None:
            headers, content = {**headers, "content-type": other.content_type}, other.content
        try:
            response = await self._gateway.send(url, headers, content, until, options.ask_for_room)
        except UnusableResponse as error:
            if is_final(error.status_code):
                return failed(request, ErrorCode.INFERENCE_ERROR, f"the gateway's response {error}")
            reason, last = status_reason(error.status_code), LastResponse(error.status_code, b"")
            return self._retry(attempt, reason, Feedback(status_code=error.status_code), last)
        except OWN_FAULTS as error:
            return not_sent(request, error)
        except FAILURES as error:
            if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
                self._on_unreachable(route.base_url, connection_failure(error))
            return self._retry(attempt, failure_reason(error), _NO_ANSWER, None)
        return self._judge(attempt, response)

    def _judge(self, attempt: _Attempt, response: GatewayResponse) -> Outcome:
        request, feedback = attempt.request, self._feedback(response)
        if is_final(response.status_code):
            status, body = response.status_code, response.body
            token, keeps = request.request_token, self._keeps_bytes
            result = answered_result(request.id, token, status, body, keeps_bytes=keeps)
            return Answered(result, feedback, response.headers.get("content-type", "")[:_LONGEST_TYPE])
        last = LastResponse(response.status_code, response.body)
        return self._retry(attempt, status_reason(response.status_code), feedback, last)

    def _feedback(self, response: GatewayResponse) -> Feedback:
        """Feedback for gates: the status and the flow control's headers."""
        headers = response.headers
        return Feedback(
            status_code=response.status_code,
            dropped_reason=headers.get(DROPPED_REASON_HEADER, "")[:64],
            retry_after_seconds=parse_retry_after(headers.get("retry-after"), self._clock()),
            queue_duration_ms=decimal(headers.get(QUEUE_DURATION_HEADER)),
            band_headroom=decimal(headers.get(BAND_HEADROOM_HEADER)),
        )

    def _retry(self, attempt: _Attempt, reason: str, feedback: Feedback, last: LastResponse | None) -> Outcome:
        delay = retry_delay(
            attempt.request.attempt,
            left_seconds=attempt.expires_at - asyncio.get_running_loop().time(),
            hint_seconds=feedback.retry_after_seconds,
            jitter=self._jitter(),
            earliest_seconds=attempt.options.earliest_retry_seconds,
        )
        if delay is None:
            return expired(attempt.request, last, feedback)
        return Retry(delay, reason, last, feedback=feedback)


def failed(request: Request, code: ErrorCode, message: str, feedback: Feedback | None = None) -> Answered:
    """The outcome of a request that ends with an error."""
    return Answered(error_result(request.id, request.request_token, code, message), feedback)


def expired(request: Request, last: LastResponse | None, feedback: Feedback | None = None) -> Answered:
    """The outcome at the deadline: the last response, else `DEADLINE_EXCEEDED`."""
    if last is None:
        return failed(request, ErrorCode.DEADLINE_EXCEEDED, "the deadline passed before the gateway answered", feedback)
    return Answered(answered_result(request.id, request.request_token, last.status_code, last.body), feedback)


def cancelled(request: Request) -> Answered:
    """The outcome of a request that its producer cancelled."""
    return failed(request, ErrorCode.CANCELLED, "cancelled by its producer")


def not_sent(request: Request, error: Exception) -> Answered:
    """The outcome of a request that cannot be written as HTTP."""
    return failed(request, ErrorCode.INVALID_REQUEST, f"the request could not be sent: {type(error).__name__}")


def invalid(error: InvalidRequest, request_token: str) -> Answered:
    """The outcome of an invalid request; `error` holds its id."""
    token = error.request_token or request_token
    return Answered(error_result(error.request_id, token, ErrorCode.INVALID_REQUEST, str(error)))
