"""Build the headers of a request to the gateway.

A request's own headers are untrusted. They must not change the framing of the message, choose a host or a worker,
imitate a proxy, or replace a header that the gateway trusts us to set. New gateway versions may trust new headers, so
only listed names are forwarded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from handlers.contract.request import Request
from handlers.forward.route import DEFAULT_HEADERS, PRIORITY_HEADER, Route

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
        *("connection", "proxy-connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"),
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
    "x-gateway-destination-endpoint",
    "x-goog-",
    "x-amzn-",
    "x-simulate",
)
_CREDENTIAL = re.compile(r"auth|cookie|token|secret|password|credential|api-?key|signature|cert|session|(^|-)user")
"""Headers that identify or authenticate a caller; forwarded only if listed in full."""


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
    return any(known.endswith("*") and name.startswith(known[:-1]) for known in listed)


def gateway_headers(request: Request, route: Route, trace: Mapping[str, str] | None = None) -> dict[str, str]:
    """All headers of a request to the gateway, except host and framing.

    Later headers replace earlier ones. `trace` is the current trace context; without it, the producer's context in
    the metadata is forwarded.
    """
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
    headers.update(trace if trace is not None else trace_headers(request.metadata))
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
