"""Which headers of a request may reach the gateway, and which ones are ours to set. Pure.

A request's own headers are a stranger's input: they may not frame the message, choose a host, speak for
the proxy in front, or take the place of a header that the gateway trusts us for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from handlers.contract.request import Request
from handlers.forward.route import PRIORITY_HEADER, Route

MAX_HEADERS: Final = 32
MAX_VALUE_BYTES: Final = 1_024
MAX_TOTAL_BYTES: Final = 8_192
MAX_FAIRNESS_BYTES: Final = 256

_NAME = re.compile(r"[A-Za-z0-9-]{1,64}")
_VALUE = re.compile(r"[\x20-\x7e\t]*")
_TENANT = re.compile(
    r"[^\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]*"
)  # names go beyond ASCII, and a value may (RFC 9110, 5.5)
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_TRACE_FIELDS: Final = ("tracestate", "baggage")

FORBIDDEN: Final = frozenset(
    {
        # Hop by hop (RFC 9110, 7.6.1)
        *("connection", "proxy-connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"),
        # Framing and addressing: ours
        *("host", "content-length", "content-type", "content-encoding", "accept-encoding", "expect"),
        # Who asks, and on whose behalf
        *("authorization", "cookie", "set-cookie", "forwarded", "via", "x-real-ip"),
        *("x-http-method", "x-http-method-override", "x-method-override", "x-original-url", "x-rewrite-url"),
        # What the gateway trusts us for
        *("x-llm-d-inference-objective", "x-gateway-inference-objective", "x-llm-d-inference-fairness-id"),
        *("x-gateway-inference-fairness-id", PRIORITY_HEADER, "traceparent", "tracestate", "baggage"),
    }
)
FORBIDDEN_PREFIXES: Final = (
    "proxy-",
    "x-forwarded-",
    "x-envoy-",
    "x-prefiller-",
    "x-gateway-destination-endpoint",
    "x-goog-",
    "x-amzn-",
    "x-simulate",
)


def allowed_headers(headers: Mapping[str, str], *, allow_authorization: bool = False) -> dict[str, str]:
    """The safe subset of a request's own headers, names in lower case; the rest is dropped."""
    allowed: dict[str, str] = {}
    total = 0
    for name, value in headers.items():
        lower = name.lower()
        if not _may_pass(lower, value, allow_authorization=allow_authorization):
            continue
        total += len(lower) + len(value)
        if len(allowed) == MAX_HEADERS or total > MAX_TOTAL_BYTES:
            break
        allowed[lower] = value
    return allowed


def _may_pass(name: str, value: str, *, allow_authorization: bool) -> bool:
    if not _NAME.fullmatch(name) or len(value) > MAX_VALUE_BYTES or not _VALUE.fullmatch(value):
        return False
    if name == "authorization":
        return allow_authorization
    return name not in FORBIDDEN and not name.startswith(FORBIDDEN_PREFIXES)


def gateway_headers(request: Request, route: Route, trace: Mapping[str, str] | None = None) -> dict[str, str]:
    """All headers of one request to the gateway but host and framing; later ones win where they meet.

    `trace` is the current trace context; without it the producer's, from the metadata, goes through.
    """
    headers = {"content-type": "application/json", "accept-encoding": "identity"}
    if request.headers:
        own = allowed_headers(request.headers, allow_authorization=route.allow_authorization)
        own.pop(route.objective_header, None)
        own.pop(route.fairness_header.lower(), None)
        own.pop(route.priority_header, None)
        headers.update(own)
    objective = request.objective or route.inference_objective
    if objective and _VALUE.fullmatch(objective):  # a lane's may come from a source that is not ours
        headers[route.objective_header] = objective
    tenant = request.metadata.get(route.fairness_attribute) if request.metadata else None
    if tenant and route.fairness_header and is_fairness_id(tenant):
        headers[route.fairness_header] = tenant
    if request.priority is not None:
        headers[route.priority_header] = str(request.priority)
    headers.update(trace if trace is not None else trace_headers(request.metadata))
    return headers


def is_fairness_id(tenant: str) -> bool:
    """Whether a tenant's name is a legal header value of 1 to 256 bytes, in UTF-8 as the gateway gets it."""
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
