"""The prometheus-* gates read a real Prometheus that scrapes two router replicas."""

from __future__ import annotations

import contextlib
import uuid

import pytest

from handlers.contract.errors import InvalidSetting
from handlers.gates.gate import Feedback, Go, Refuse
from handlers.gates.sources import GateSources
from tests.gates.building import Clock, ReadableLog, gate, request, sources
from tests.gates.exporter import Exporter
from tests.gates.opening import started, until_budget
from tests.waiting import wait_until_async

Routers = tuple[Exporter, Exporter]

OLD_SATURATION = "inference_extension_flow_control_pool_saturation"
NEW_SATURATION = "llm_d_epp_flow_control_pool_saturation"
OLD_QUEUE = "inference_extension_flow_control_queue_size"
NEW_QUEUE = "llm_d_epp_flow_control_queue_size"
NEW_READY = "llm_d_epp_ready_endpoints"
OLD_READY = "inference_pool_ready_pods"
OLD_POD_QUEUE = "inference_pool_per_pod_queue_size"
RUNNING = "vllm:num_requests_running"


def new_pool() -> str:
    """A pool of one test alone; the quotes and backslash must not break a query."""
    return f'pool "{uuid.uuid4().hex[:8]}" \\ 100% é'


@pytest.fixture
def pool() -> str:
    return new_pool()


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("sum(up", 'Prometheus refuses the query: invalid parameter "query": 1:7: parse error: '),
        ("no_such_metric", "the query has no result: no_such_metric"),
    ],
)
async def test_a_query_without_a_reading_names_the_reason(
    from_prometheus: GateSources, query: str, reason: str
) -> None:
    async with started("prometheus-query", {"query": query}, from_prometheus) as built:
        assert built.state().why_missing.startswith(reason)


async def test_saturation_is_read_by_either_name_and_the_fullest_replica_counts(
    from_prometheus: GateSources, routers: Routers
) -> None:
    for metric in (OLD_SATURATION, NEW_SATURATION):
        await fullest_replica_counts(from_prometheus, routers, new_pool(), metric)


async def fullest_replica_counts(from_prometheus: GateSources, routers: Routers, pool: str, metric: str) -> None:
    routers[0].set(metric, 0.1, inference_pool=pool, namespace="a")
    routers[1].set(metric, 0.5, inference_pool=pool, namespace="a")
    async with started("prometheus-saturation", {"pool": pool, "threshold": "0.8"}, from_prometheus) as built:
        await until_budget(built, 0.3, "0.8 - 0.5")
        assert built.shares()[0].part == pytest.approx(0.3 / 0.8)
        routers[1].set(metric, 0.8, inference_pool=pool, namespace="a")
        await until_budget(built, 0.0, "closed at the threshold")
        assert isinstance(await built.admit(request()), Refuse)
        reason = "reads 0.8, closes at 0.8"
        await wait_until_async(lambda: built.state().why_closed == reason, "the reason")
        routers[0].set(metric, 0.0, inference_pool=pool, namespace="a")
        routers[1].set(metric, 0.0, inference_pool=pool, namespace="a")
        await until_budget(built, 0.8, "idle: the contract's figure")
        assert built.shares()[0].part == 1.0, "an idle pool gives all its slots"
        assert isinstance(await built.admit(request()), Go)


async def test_the_new_name_wins_if_both_are_exported(
    from_prometheus: GateSources, routers: Routers, pool: str
) -> None:
    routers[0].set(OLD_SATURATION, 0.7, inference_pool=pool, namespace="a")
    routers[0].set(NEW_SATURATION, 0.2, inference_pool=pool, namespace="a")
    async with started("prometheus-saturation", {"pool": pool}, from_prometheus) as built:
        await until_budget(built, 0.6, "0.8 - 0.2")


async def test_a_namespace_separates_pools_of_the_same_name(
    from_prometheus: GateSources, routers: Routers, pool: str
) -> None:
    routers[0].set(NEW_SATURATION, 0.7, inference_pool=pool, namespace="a")
    routers[0].set(NEW_SATURATION, 0.3, inference_pool=pool, namespace="b")
    async with started("prometheus-saturation", {"pool": pool, "namespace": "b"}, from_prometheus) as built:
        await until_budget(built, 0.5, "0.8 - 0.3")


MISSING: list[tuple[dict[str, object], float, str]] = [
    ({}, 0.8, "fallback"),
    ({"fallback": "1.0"}, 0.0, "fallback"),
    ({"on_missing": "closed"}, 0.0, "closed"),
    ({"on_missing": "open", "fallback": 1.0}, 0.8, "open"),
    ({"on_missing": "hold"}, 0.8, "fallback"),
]
"""Parameters; the budget and the rule that they give while the metric is missing."""


async def test_a_missing_metric_is_reported_and_on_missing_holds(
    from_prometheus: GateSources, log: ReadableLog
) -> None:
    for params, budget, in_force in MISSING:
        log.lines.clear()
        given = {"pool": new_pool(), **params}
        async with started("prometheus-saturation", given, from_prometheus) as built:
            state = built.state()
            assert state.budget == pytest.approx(budget), params
            assert (state.on_missing, state.is_source_available) == (in_force, False), params
            (line,) = log.lines_of("gate started")
            assert line["in_force"] == in_force, params
            assert NEW_SATURATION in line["source"], params
            assert "pool" not in line, "the gate's log names what it reads"


async def test_a_metric_that_disappears_is_held_for_a_while_and_then_replaced_by_the_fallback(
    prometheus_url: str, routers: Routers, log: ReadableLog, pool: str
) -> None:
    clock = Clock()
    given = sources(prometheus_url=prometheus_url, log=log, clock=clock)
    routers[0].set(NEW_SATURATION, 0.5, inference_pool=pool, namespace="a")
    params = {"pool": pool, "on_missing": "hold", "hold_seconds": "1m", "fallback": 0.7}
    async with contextlib.aclosing(given.http), started("prometheus-saturation", params, given) as built:
        await until_budget(built, 0.3, "read")
        routers[0].remove(NEW_SATURATION)
        await wait_until_async(lambda: built.state().on_missing == "hold", "the hold to begin")
        assert built.budget() == pytest.approx(0.3)
        clock.now += 61
        await wait_until_async(lambda: built.state().on_missing == "fallback", "the hold to end")
        assert built.budget() == pytest.approx(0.1)
        await wait_until_async(
            lambda: [line["in_force"] for line in log.lines_of("gate on_missing applied")] == ["hold", "fallback"],
            "both to be reported, each once",
        )


async def test_the_budget_comes_from_the_first_source_that_has_a_sample(
    from_prometheus: GateSources, routers: Routers, log: ReadableLog, pool: str
) -> None:
    params = {"pool": pool, "max_concurrency": "10", "baseline": "0.1"}
    first, second = routers
    for router in routers:
        router.set(NEW_READY, 2, name=pool)
    first.set(RUNNING, 4, inference_pool=pool, pod="p1")
    second.set(RUNNING, 6, inference_pool=pool, pod="p2")
    async with started("prometheus-budget", params, from_prometheus) as built:
        await until_budget(built, 0.4, "2: 1 - 10 / 20 - 0.1")
        for queued, pod in ((2, "p1"), (4, "p2")):
            first.set(OLD_POD_QUEUE, queued, name=pool, model_server_pod=pod)
        await until_budget(built, 0.6, "1: 1 - mean 3 / 10 - 0.1")
        first.set(NEW_QUEUE, 1, inference_pool=pool, fairness_id="a")
        first.set(NEW_QUEUE, 3, inference_pool=pool, fairness_id="b")
        second.set(NEW_QUEUE, 2, inference_pool=pool, fairness_id="a")
        await until_budget(built, 0.7, "0: 1 - 4 / 20 - 0.1, the fullest replica")
        first.set(NEW_QUEUE, 0, inference_pool=pool, fairness_id="a")
        first.set(NEW_QUEUE, 0, inference_pool=pool, fairness_id="b")
        second.set(NEW_QUEUE, 0, inference_pool=pool, fairness_id="a")
        await until_budget(built, 0.9, "idle")
        assert built.shares()[0].part == pytest.approx(1.0)
    (closing,) = log.lines_of("gate threshold computed")
    assert closing["closes_at_load_per_pod"] == pytest.approx(9)
    selected = [line["source"] for line in log.lines_of("gate source selected")]
    # A sample that is missing for a moment selects an earlier source again.
    assert list(dict.fromkeys(selected)) == ["vllm requests running", "queue per pod", "router queue"]
    assert len(log.lines_of("gate query configured")) == 3


async def test_the_budget_closes_at_the_baseline_and_knows_the_old_names(
    from_prometheus: GateSources, routers: Routers, pool: str
) -> None:
    routers[0].set(OLD_READY, 1, name=pool)
    routers[0].set(OLD_QUEUE, 96, inference_pool=pool, fairness_id="a")
    async with started("prometheus-budget", {"pool": pool}, from_prometheus) as built:
        await wait_until_async(lambda: built.state().value is not None, "a reading")
        assert built.budget() == 0.0
        assert built.state().is_source_available
        routers[0].set(OLD_QUEUE, 45, inference_pool=pool, fairness_id="a")
        await until_budget(built, 0.5, "1 - 45 / 100 - 0.05")


async def test_a_budget_without_a_source_is_closed_by_default(
    from_prometheus: GateSources, routers: Routers, pool: str
) -> None:
    routers[0].set(NEW_READY, 0, name=pool)
    routers[0].set(NEW_QUEUE, 0, inference_pool=pool, fairness_id="a")
    async with (
        started("prometheus-budget", {"pool": pool}, from_prometheus) as closed,
        started("prometheus-budget", {"pool": pool, "fallback": 0.5}, from_prometheus) as half,
    ):
        await wait_until_async(lambda: closed.state().on_missing, "no pods are ready: 0 / 0 is no reading")
        assert (closed.budget(), half.budget()) == (0.0, 0.5)


BUDGETS = {"vector(0.25)": 0.25, "0.5": 0.5, "vector(7)": 1.0, "vector(-1)": 0.0, "1 - vector(0)/0": 0.0}


async def test_a_query_is_the_budget_clamped(from_prometheus: GateSources) -> None:
    for query, budget in BUDGETS.items():
        async with started("prometheus-query", {"query": query}, from_prometheus) as built:
            assert built.budget() == pytest.approx(budget), query


async def test_the_budget_is_the_smallest_of_several_samples(from_prometheus: GateSources, routers: Routers) -> None:
    name = f"share_{uuid.uuid4().hex[:8]}"
    routers[0].set(name, 0.9)
    routers[1].set(name, 0.4)
    async with started("prometheus-query", {"query": name}, from_prometheus) as built:
        await until_budget(built, 0.4, "the lesser replica")


async def test_a_query_without_a_number_is_missing_with_its_reason(
    from_prometheus: GateSources, log: ReadableLog
) -> None:
    for query in ("sum(", "up[5m]", '"text"'):
        log.lines.clear()
        async with started("prometheus-query", {"query": query, "fallback": "0.2"}, from_prometheus) as built:
            assert built.budget() == 0.2, query
            assert log.lines_of("gate source lost")[0]["reason"], query


async def test_gates_with_the_same_query_share_one_fetch(
    from_prometheus: GateSources, routers: Routers, pool: str
) -> None:
    routers[0].set(NEW_SATURATION, 0.4, inference_pool=pool, namespace="a")
    gates = [gate("prometheus-saturation", {"pool": pool, "threshold": t}, from_prometheus) for t in (0.5, 0.8)]
    for one in gates:
        await one.start()
    await until_budget(gates[0], 0.1, "its own threshold")
    assert gates[0].shares()[0].at == gates[1].shares()[0].at
    await gates[0].aclose()
    routers[0].set(NEW_SATURATION, 0.6, inference_pool=pool, namespace="a")
    await until_budget(gates[1], 0.2, "still read after the other gate closed")
    await gates[1].aclose()


async def test_an_unavailable_prometheus_does_not_stop_the_start() -> None:
    given = sources(prometheus_url="http://127.0.0.1:1")
    async with started("prometheus-budget", {"pool": "p"}, given) as built:
        assert built.budget() == 0.0
        assert "source missing" in built.state().why_closed
    await given.http.aclose()


def test_a_gate_is_closed_until_it_has_started() -> None:
    built = gate("prometheus-saturation", {"pool": "p"}, sources(prometheus_url="http://127.0.0.1:1"))
    assert (built.budget(), built.shares()[0].part, built.room()) == (0.0, 0.0, 0)


async def test_headroom_applies_only_while_there_is_a_reading(
    from_prometheus: GateSources,
) -> None:
    params = {"query": "vector(0.5)", "budget_means": "headroom"}
    async with started("prometheus-query", params, from_prometheus) as built:
        (share,) = built.shares()
        assert share.headroom == pytest.approx(0.48)
        assert share.at > 0
    params = {"query": "absent_metric", "budget_means": "headroom", "on_missing": "open"}
    async with started("prometheus-query", params, from_prometheus) as built:
        assert built.shares()[0].headroom is None


async def test_with_a_headroom_rejections_count_until_the_next_reading(
    prometheus_url: str,
) -> None:
    given = sources(prometheus_url=prometheus_url, refresh_seconds=60)
    params = {"query": "vector(-0.1)", "budget_means": "headroom", "hold_back": 0}
    async with started("prometheus-query", params, given) as built:
        for answer in (Feedback(429), Feedback(503, dropped_reason="evicted"), Feedback(200), Feedback(None)):
            built.observe(request(), answer)
        (share,) = built.shares()
        assert (share.part, share.fewer) == (0.0, 2)
        assert share.headroom == pytest.approx(-0.1)
        assert built.room() is None, "not closed: what finishes may be replaced"
        assert isinstance(await built.admit(request()), Go)
    await given.http.aclose()


async def test_the_next_reading_includes_earlier_rejections(from_prometheus: GateSources) -> None:
    params = {"query": "vector(0.5)", "budget_means": "headroom"}
    async with started("prometheus-query", params, from_prometheus) as built:
        built.observe(request(), Feedback(429))
        await wait_until_async(lambda: built.shares()[0].fewer == 0, "a newer reading")


@pytest.mark.parametrize("gate_type", ["prometheus-saturation", "prometheus-budget", "prometheus-query"])
def test_without_a_prometheus_url_the_start_stops(gate_type: str) -> None:
    params = {"query": "up"} if gate_type == "prometheus-query" else {"pool": "p"}
    with pytest.raises(InvalidSetting, match=f"PROMETHEUS_URL.*{gate_type}"):
        gate(gate_type, params, sources())
