"""Ask a Prometheus server: one instant query, its samples back. And how to name a router's metrics.

The router renamed its metrics; both names are asked for in one query, the new one wins. Several router
replicas report the same pool: the largest of them counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Final, Literal

import msgspec

from handlers.contract.json_limits import MALFORMED
from handlers.gates.metric.feed import SourceMissing
from handlers.gates.metric.http_text import HttpText

SATURATION: Final = (
    "llm_d_epp_flow_control_pool_saturation",
    "inference_extension_flow_control_pool_saturation",
)
QUEUE_SIZE: Final = ("llm_d_epp_flow_control_queue_size", "inference_extension_flow_control_queue_size")
READY_PODS: Final = ("llm_d_epp_ready_endpoints", "inference_pool_ready_pods")
POD_QUEUE_SIZE: Final = ("llm_d_epp_per_endpoint_queue_size", "inference_pool_per_pod_queue_size")


class _Series(msgspec.Struct):
    metric: dict[str, str]
    value: tuple[float, str]


class _Data(msgspec.Struct):
    resultType: Literal["vector", "scalar", "matrix", "string"]  # noqa: N815 - the wire's name
    result: msgspec.Raw


class _Answer(msgspec.Struct):
    status: str
    data: _Data | None = None


async def instant_query(
    http: HttpText, prometheus_url: str, query: str
) -> list[tuple[Mapping[str, str], float]]:
    """The samples of `query` now, labels and value each; a scalar has no labels. May be empty.

    Raises `SourceMissing` when the server does not answer the query, or what the connection raises.
    """
    body = await http.get(f"{prometheus_url.rstrip('/')}/api/v1/query", {"query": query})
    try:
        answer = msgspec.json.decode(body, type=_Answer)
        if answer.status != "success" or answer.data is None:
            raise SourceMissing("it did not evaluate the query")
        if answer.data.resultType == "scalar":
            _, value = msgspec.json.decode(answer.data.result, type=tuple[float, str])
            return [({}, float(value))]
        if answer.data.resultType != "vector":
            raise SourceMissing(f"the query gives a {answer.data.resultType}, not one number")
        series = msgspec.json.decode(answer.data.result, type=list[_Series])
    except (*MALFORMED, ValueError):
        raise SourceMissing("its answer is not Prometheus's") from None
    return [(one.metric, float(one.value[1])) for one in series]


def selector(**labels: str) -> str:
    """`{name="value",...}` of the labels that are not empty."""
    # JSON's escapes are those of a PromQL string; a value can close neither the string nor the selector.
    return "{" + ",".join(f"{name}={json.dumps(value)}" for name, value in labels.items() if value) + "}"


def either(names: tuple[str, str], query: Callable[[str], str]) -> str:
    """`query` of a metric's name: by its new name, else by its old one."""
    return f"({query(names[0])} or {query(names[1])})"
