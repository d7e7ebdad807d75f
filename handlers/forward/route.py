"""Routes: gateway URL, headers and objective of one queue or subscription.

URLs are built from a configured base and a checked path. Untrusted input is never parsed as a URL.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

import msgspec

from handlers.contract.errors import InvalidRequest

DEFAULT_PATH = "/v1/completions"
OBJECTIVE_HEADER = "x-llm-d-inference-objective"
FAIRNESS_HEADER = "x-llm-d-inference-fairness-id"
PRIORITY_HEADER = "x-gateway-priority"
DEFAULT_HEADERS = (
    *("accept", "accept-language", "user-agent", "idempotency-key"),
    *("x-request-id", "request-id", "x-correlation-id", "x-trace", "x-trace-id"),
    *("b3", "x-b3-*", "uber-trace-id", "x-cloud-trace-context", "x-datadog-*"),
    *("anthropic-version", "anthropic-beta", "openai-beta"),
)
"""Request headers that are forwarded by default: ids, traces, API versions."""


class Route(msgspec.Struct, frozen=True):
    """Where the requests of a queue are sent.

    `base_url` is the gateway (`http://host:port[/prefix]`); `path` is appended unless the request names an `endpoint`
    below one of `allowed_paths`. `fairness_attribute` is the metadata field with the tenant; an empty `fairness_header`
    disables fairness. `allowed_headers` are the request headers to forward, in lower case; a name that ends in `*` is
    a prefix.
    """

    base_url: str
    path: str = DEFAULT_PATH
    inference_objective: str = ""
    objective_header: str = OBJECTIVE_HEADER
    fairness_header: str = FAIRNESS_HEADER
    fairness_attribute: str = "userid"
    priority_header: str = PRIORITY_HEADER
    allowed_paths: tuple[str, ...] = ("/v1/",)
    allow_authorization: bool = False
    allowed_headers: tuple[str, ...] = DEFAULT_HEADERS


class Routes(msgspec.Struct, frozen=True):
    """Routes by queue name or subscription id; `default` for all others."""

    default: Route
    by_queue: Mapping[str, Route] = msgspec.field(default_factory=dict)

    def of(self, queue: str) -> Route:
        return self.by_queue.get(queue, self.default)


_PATH = re.compile(r"/[A-Za-z0-9._~/-]{1,255}")


def is_safe_path(path: str, allowed: Sequence[str]) -> bool:
    """Whether `path` is plain and allowed.

    A plain path has no dot segments and no empty ones. An entry of `allowed` that ends in `/` allows all paths below
    it; any other entry allows only itself.
    """
    if not _PATH.fullmatch(path):
        return False
    segments = path[1:].split("/")
    if any(segment in (".", "..") for segment in segments) or "" in segments[:-1]:
        return False
    return any(path.startswith(prefix) if prefix.endswith("/") else path == prefix for prefix in allowed)


def gateway_url(base_url: str, path: str, endpoint: str, allowed: tuple[str, ...], request_id: str) -> str:
    """The URL of one request. Raises `InvalidRequest` for a forbidden `endpoint`."""
    if not endpoint:
        return joined(base_url, path)
    if not is_safe_path(endpoint, allowed):
        raise InvalidRequest(
            "endpoint",
            found="a path that is not allowed",
            accepted=f"a plain path below {', '.join(allowed)}",
            request_id=request_id,
        )
    return joined(base_url, endpoint)


@lru_cache(maxsize=1_024)
def joined(base_url: str, path: str) -> str:
    """`path` appended to the path of `base_url`."""
    return base_url.rstrip("/") + "/" + path.lstrip("/")
