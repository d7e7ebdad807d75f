"""Where the requests of one queue or subscription go, and under which objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

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
"""The headers of a request that pass unless the operator says otherwise: ids, traces, versions of an API."""


@dataclass(frozen=True, slots=True)
class Route:
    """The gateway's side of a queue.

    `base_url` is the gateway (`http://host:port[/prefix]`), `path` what is joined to it unless the
    request names an `endpoint` below one of `allowed_paths`. `fairness_attribute` is the metadata field
    that names the tenant; an empty `fairness_header` switches fairness off. `allowed_headers` are the headers of a
    request that pass, in lower case; a name that ends in `*` is the beginning of names.
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


@dataclass(frozen=True, slots=True)
class Routes:
    """Routes by queue name or subscription id; `default` for all others."""

    default: Route
    by_queue: Mapping[str, Route] = field(default_factory=dict)

    def of(self, queue: str) -> Route:
        """The route of one queue."""
        return self.by_queue.get(queue, self.default)
