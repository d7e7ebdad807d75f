"""Gates that query Prometheus: `prometheus-query`, `prometheus-saturation`, `prometheus-budget`.

The router has renamed its metrics, so each query asks for both names; the new one wins. If several replicas of the
router report the same pool, the largest value counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Final, Literal

import msgspec

from handlers.contract.accepted import about
from handlers.contract.errors import InvalidSetting
from handlers.contract.lenient_json import MALFORMED
from handlers.gates.metric.reading_gate import Baseline, Fallback, ReadingGate, ReadingParameters, Rule
from handlers.gates.parameters import Text
from handlers.gates.sources import Feed, GateSources, HttpText, MetricSample, SourceMissing, UnexpectedStatus

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
    error: str = ""
    errorType: str = ""  # noqa: N815 - the wire's name


_REFUSED: Final = "Prometheus refuses the query: "
_NO_RESULT: Final = "the query has no result: "
_MOST_CHARACTERS: Final = 500


async def instant_query(http: HttpText, prometheus_url: str, query: str) -> list[tuple[Mapping[str, str], float]]:
    """Evaluate `query` now and return its samples (labels, value).

    A scalar has no labels. Raises `SourceMissing` if the server does not return samples, and transport errors.
    """
    try:
        body = await http.get(f"{prometheus_url.rstrip('/')}/api/v1/query", {"query": query})
    except UnexpectedStatus as error:
        raise SourceMissing(_refusal(error.body) or str(error)) from None
    try:
        answer = msgspec.json.decode(body, type=_Answer)
        if answer.status != "success" or answer.data is None:
            raise SourceMissing("Prometheus could not evaluate the query")
        if answer.data.resultType == "scalar":
            _, value = msgspec.json.decode(answer.data.result, type=tuple[float, str])
            return [({}, float(value))]  # type: ignore[misc]  # may be NaN or +Inf
        if answer.data.resultType != "vector":
            raise SourceMissing(f"expected a vector or scalar, got a {answer.data.resultType}")
        series = msgspec.json.decode(answer.data.result, type=list[_Series])
        return [(one.metric, float(one.value[1])) for one in series]  # type: ignore[misc]  # may be NaN or +Inf
    except (*MALFORMED, ValueError):
        raise SourceMissing("the response does not have the format of the Prometheus API") from None


def _refusal(body: bytes) -> str:
    """Prometheus' own words for an invalid query; empty for other responses."""
    try:
        answer = msgspec.json.decode(body, type=_Answer)
    except (*MALFORMED, ValueError):
        return ""
    is_refused = answer.errorType in ("bad_data", "execution")
    return f"{_REFUSED}{answer.error[:_MOST_CHARACTERS]}" if is_refused else ""


def _no_result(query: str) -> MetricSample:
    """The sample of a query without a result; its detail is the query."""
    return MetricSample(None, f"{_NO_RESULT}{query[:_MOST_CHARACTERS]}")


def selector(**labels: str) -> str:
    """PromQL selector `{name="value",...}` of the labels that are not empty."""
    # JSON escapes are valid in PromQL strings, so a value cannot end the string.
    return "{" + ",".join(f"{name}={json.dumps(value)}" for name, value in labels.items() if value) + "}"


def either(names: tuple[str, str], query: Callable[[str], str]) -> str:
    """PromQL for a metric by its new name, else its old one."""
    return f"({query(names[0])} or {query(names[1])})"


class PrometheusQueryParameters(ReadingParameters, frozen=True, kw_only=True):
    """Parameters of `prometheus-query`."""

    query: Annotated[Text, about("PromQL query whose smallest sample, clamped to 0..1, is the budget.")]
    pool: Annotated[str, about("Inference pool, for logs and metrics; it does not change the query.")] = ""
    fallback: Fallback = 0.0


class PrometheusQueryGate(ReadingGate):
    """Publishes the value of a PromQL query. Of several samples the smallest counts."""

    gate_type = "prometheus-query"

    def __init__(self, parameters: PrometheusQueryParameters, sources: GateSources) -> None:
        super().__init__(
            query_feed(parameters.query, sources, self.gate_type, least=True),
            Rule(lambda value: min(1.0, value), threshold=0.0, full=1.0, fallback=parameters.fallback),
            parameters,
            log=sources.log,
            clock=sources.clock,
            label=parameters.pool,
        )


def query_feed(query: str, sources: GateSources, gate_type: str, *, least: bool) -> Feed[MetricSample]:
    """Feed of a query's smallest or largest sample. Gates with the same query share it."""
    check_prometheus_url(sources, gate_type)

    async def read() -> MetricSample:
        samples = [value for _, value in await instant_query(sources.prometheus_http, sources.prometheus_url, query)]
        if not samples:
            return _no_result(query)
        return MetricSample(min(samples) if least else max(samples))

    return sources.feeds.feed(("prometheus", "least" if least else "largest", query), read, name=f"prometheus {query}")


def check_prometheus_url(sources: GateSources, gate_type: str) -> None:
    """Raise `InvalidSetting` if no Prometheus is configured."""
    if not sources.prometheus_url:
        raise InvalidSetting(
            "PROMETHEUS_URL",
            found="nothing",
            accepted=f"URL of a Prometheus server (required by {gate_type})",
        )


class PrometheusSaturationParameters(ReadingParameters, frozen=True, kw_only=True):
    """Parameters of `prometheus-saturation`.

    `fallback` is a saturation, so its default 0 opens the gate.
    """

    pool: Annotated[Text, about("Inference pool whose saturation is read.")]
    namespace: Annotated[str, about("Namespace of the pool; empty: any.")] = ""
    threshold: Annotated[float, about("Saturation at which the gate closes; above 0, at most 1.", gt=0, le=1)] = 0.8
    fallback: Annotated[
        float,
        about(
            "Saturation without a reading, 0 to 1, with `on_missing: fallback`. 0 means open here, but "
            "closed in other gates.",
            ge=0,
            le=1,
        ),
    ] = 0.0


class PrometheusSaturationGate(ReadingGate):
    """Publishes threshold - saturation. At saturation 0, the whole pool may be used."""

    gate_type = "prometheus-saturation"

    def __init__(self, parameters: PrometheusSaturationParameters, sources: GateSources) -> None:
        threshold = parameters.threshold
        wanted = selector(inference_pool=parameters.pool, namespace=parameters.namespace)
        query = either(SATURATION, lambda name: f"max({name}{wanted})")
        super().__init__(
            query_feed(query, sources, self.gate_type, least=False),
            Rule(
                lambda value: threshold - max(0.0, value),
                threshold=threshold,
                full=threshold,
                fallback=max(0.0, threshold - parameters.fallback),
            ),
            parameters,
            log=sources.log,
            clock=sources.clock,
            label=parameters.pool,
        )


_SOURCE_LABEL: Final = "budget_source"
_SOURCE_NAMES: Final = {"0": "router queue", "1": "queue per pod", "2": "vllm requests running"}


class PrometheusBudgetParameters(ReadingParameters, frozen=True, kw_only=True):
    """Parameters of `prometheus-budget`."""

    pool: Annotated[Text, about("Inference pool whose load is read.")]
    namespace: Annotated[str, about("Namespace of the pool; empty: any.")] = ""
    max_concurrency: Annotated[float, about("Requests that one pod handles at a time.", gt=0)] = 100.0
    baseline: Baseline = 0.05
    fallback: Fallback = 0.0


class PrometheusBudgetGate(ReadingGate):
    """Publishes idle fraction - baseline, from the first metric with a sample:

    0: 1 - requests queued in the router / (ready pods x max_concurrency)
    1: 1 - mean queue of a pod / max_concurrency
    2: 1 - requests running in vLLM / (ready pods x max_concurrency)

    A pool without load allows all slots.
    """

    gate_type = "prometheus-budget"

    def __init__(self, parameters: PrometheusBudgetParameters, sources: GateSources) -> None:
        baseline = parameters.baseline
        self._closes_at_load_per_pod = parameters.max_concurrency * (1 - baseline)
        self._queries = budget_queries(parameters)
        super().__init__(
            _budget_feed(self._queries, sources, self.gate_type),
            Rule(
                lambda value: min(1.0, value) - baseline,
                threshold=baseline,
                full=1 - baseline,
                fallback=parameters.fallback,
            ),
            parameters,
            log=sources.log,
            clock=sources.clock,
            label=parameters.pool,
        )

    async def start(self) -> None:
        """Log the queries and the load that closes the gate; start reading."""
        for source, query in self._queries.items():
            self._log.info(
                "gate query configured",
                gate=self.gate_type,
                pool=self._label,
                name=_SOURCE_NAMES[source],
                query=query,
            )
        self._log.info(
            "gate threshold computed",
            gate=self.gate_type,
            pool=self._label,
            closes_at_load_per_pod=self._closes_at_load_per_pod,
        )
        await super().start()


def budget_queries(parameters: PrometheusBudgetParameters) -> dict[str, str]:
    """PromQL of each metric, by its number."""
    by_inference_pool = selector(inference_pool=parameters.pool, namespace=parameters.namespace)
    by_name = selector(name=parameters.pool, namespace=parameters.namespace)
    ready = either(READY_PODS, lambda metric: f"max({metric}{by_name})")
    most = f"({ready} * {parameters.max_concurrency:g})"
    # The queues of one router replica (`instance`) are added; of several replicas the fullest counts.
    queued = either(QUEUE_SIZE, lambda metric: f"max(sum by (instance) ({metric}{by_inference_pool}))")
    per_pod = either(POD_QUEUE_SIZE, lambda metric: f"max(avg by (instance) ({metric}{by_name}))")
    running = f"sum(vllm:num_requests_running{by_inference_pool})"
    return {
        "0": f"1 - {queued} / {most}",
        "1": f"1 - {per_pod} / {parameters.max_concurrency:g}",
        "2": f"1 - {running} / {most}",
    }


def _budget_feed(queries: dict[str, str], sources: GateSources, gate_type: str) -> Feed[MetricSample]:
    """Feed of all metrics in one query, measured together. A label names each."""
    check_prometheus_url(sources, gate_type)
    query = " or ".join(
        f'label_replace({one}, "{_SOURCE_LABEL}", "{source}", "", "")' for source, one in queries.items()
    )

    async def read() -> MetricSample:
        samples = await instant_query(sources.prometheus_http, sources.prometheus_url, query)
        # Without ready pods, a metric is 0 / 0 = NaN, while another metric may have a value.
        values = {labels.get(_SOURCE_LABEL, ""): value for labels, value in samples if not math.isnan(value)}
        if not values:
            return _no_result(query)
        first = min(values)
        return MetricSample(values[first], _SOURCE_NAMES.get(first, first))

    return sources.feeds.feed(("prometheus", "first", query), read, name=f"prometheus {query}")
