"""`endpoint-scrape` reads a /metrics page by itself."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.contract.errors import InvalidSetting
from handlers.gates.allowance import Allowance
from handlers.gates.gate import Go
from handlers.gates.metric.endpoint_scrape import CountedScrapeGate, samples_of
from handlers.gates.sources import GateSources
from tests.gates.building import ReadableLog, gate, request
from tests.gates.exporter import Exporter
from tests.gates.opening import started, until_budget
from tests.waiting import wait_until_async

WAITING = "vllm:num_requests_waiting"


@pytest.mark.parametrize(
    ("value", "params", "budget"),
    [
        (0.25, {}, 0.75),
        (0.25, {"baseline": "0.1"}, 0.65),
        (1.7, {}, 0.0),
        (0.25, {"value_type": "budget"}, 0.25),
        (0.25, {"value_type": "budget", "baseline": 0.05}, 0.2),
        (3, {"max_count_per_pod": "5"}, 0.4),
        (3, {"max_count_per_pod": 5, "value_type": "budget"}, 0.6),
        (0, {"baseline": "0.2"}, 0.8),
    ],
)
async def test_the_value_becomes_a_budget(
    exporter: Exporter, from_pages: GateSources, value: float, params: dict[str, Any], budget: float
) -> None:
    exporter.set(WAITING, value)
    exporter.set(f"{WAITING}_more", 1)
    params = {"url": exporter.url, "metric": WAITING, **params}
    async with started("endpoint-scrape", params, from_pages) as built:
        assert built.budget() == pytest.approx(budget)
        full = 1 - float(params.get("baseline", 0))
        assert built.shares()[0].part == pytest.approx(budget / full)


@pytest.mark.parametrize(("in_use", "held_back", "ours"), [(0, 0.5, 16), (0.5, 0.04, 14), (0.5, 0, 16), (0.9, 0.5, 0)])
async def test_slots_that_are_held_back_stay_free_from_the_first_request(
    exporter: Exporter, from_pages: GateSources, in_use: float, held_back: float, ours: int
) -> None:
    exporter.set("saturation", in_use)
    params = {"url": exporter.url, "metric": "saturation", "budget_means": "headroom", "hold_back": held_back}
    async with started("endpoint-scrape", params, from_pages) as built:
        assert Allowance(32, built.shares).room() == ours


async def test_a_headroom_whose_budget_is_0_is_reported_as_closed(exporter: Exporter, from_pages: GateSources) -> None:
    exporter.set("saturation", 1.1)
    params = {"url": exporter.url, "metric": "saturation", "budget_means": "headroom", "hold_back": -0.02}
    async with started("endpoint-scrape", params, from_pages) as built:
        assert (built.budget(), built.state().why_closed) == (0.0, "reads 1.1, closes at 1")


@pytest.mark.parametrize("admission", ["budget", "counted"])
async def test_a_missing_series_is_named_with_the_nearest_name(
    exporter: Exporter, from_pages: GateSources, admission: str
) -> None:
    exporter.set(WAITING, 1)
    params = {"url": exporter.url, "max_count_per_pod": 5, "admission": admission}
    for metric, labels, reason in (
        (f"{WAITING}s", {"a": "b"}, f'no series {WAITING}s{{a="b"}} on the page (did you mean {WAITING}?)'),
        (WAITING, {"a": "b"}, f'no series {WAITING}{{a="b"}} on the page'),
    ):
        async with started("endpoint-scrape", {**params, "metric": metric, "labels": labels}, from_pages) as built:
            assert built.state().why_missing == reason


async def test_counts_add_up_over_series_and_parts_do_not(exporter: Exporter, from_pages: GateSources) -> None:
    for engine, count in (("0", 2), ("1", 3)):
        exporter.set(WAITING, count, model_name="m", engine=engine)
        exporter.set("saturation", count / 10, model_name="m", engine=engine)
    exporter.set(WAITING, 100, model_name="other", engine="0")
    counted = {
        "url": exporter.url,
        "metric": WAITING,
        "labels": '{"model_name": "m"}',
        "max_count_per_pod": 10,
    }
    parts = {"url": exporter.url, "metric": "saturation", "labels": "model_name=m"}
    async with (
        started("endpoint-scrape", counted, from_pages) as sum_of_counts,
        started("endpoint-scrape", parts, from_pages) as largest_part,
    ):
        assert sum_of_counts.budget() == pytest.approx(0.5)
        assert largest_part.budget() == pytest.approx(0.7)


async def test_the_capacity_follows_the_ready_pods(exporter: Exporter, from_pages: GateSources) -> None:
    exporter.set(WAITING, 6)
    exporter.set("inference_pool_ready_pods", 2, name="p")
    params = {
        "url": exporter.url,
        "metric": WAITING,
        "max_count_per_pod": "5",
        "pods_url": exporter.url,
        "pods_metric": "inference_pool_ready_pods",
        "pods_labels": {"name": "p"},
    }
    async with started("endpoint-scrape", params, from_pages) as built:
        assert built.budget() == pytest.approx(0.4)
        exporter.set("inference_pool_ready_pods", 3, name="p")
        await until_budget(built, 0.6, "6 of 15")
        exporter.set("inference_pool_ready_pods", 0, name="p")
        await until_budget(built, 0.0, "no pods: the fallback")
        await wait_until_async(lambda: "no ready pods" in built.state().why_closed, "its reason")


async def test_gates_on_one_page_fetch_it_once(exporter: Exporter, from_pages: GateSources) -> None:
    exporter.set("one", 0.1)
    exporter.set("two", 0.2)
    gates = [gate("endpoint-scrape", {"url": exporter.url, "metric": m}, from_pages) for m in ("one", "two")]
    for built in gates:
        await built.start()
    assert [built.budget() for built in gates] == [pytest.approx(0.9), pytest.approx(0.8)]
    assert exporter.fetches == 1
    for built in gates:
        await built.aclose()


@pytest.mark.parametrize(
    ("params", "budget"),
    [({}, 0.0), ({"fallback": 1.0}, 1.0), ({"absent_value": "0"}, 1.0), ({"on_missing": "open"}, 1.0)],
)
async def test_a_page_without_the_metric_uses_absent_value(
    exporter: Exporter, from_pages: GateSources, params: dict[str, Any], budget: float
) -> None:
    exporter.set("another", 1)
    async with started("endpoint-scrape", {"url": exporter.url, "metric": WAITING, **params}, from_pages) as built:
        assert built.budget() == budget
        assert bool(built.state().on_missing) is ("absent_value" not in params)


async def test_start_and_end_of_an_outage_of_the_page_are_logged_once(
    exporter: Exporter, from_pages: GateSources, log: ReadableLog
) -> None:
    exporter.set(WAITING, 0.5)
    params = {"url": exporter.url, "metric": WAITING}
    async with started("endpoint-scrape", params, from_pages) as built:
        exporter.status = 503
        await until_budget(built, 0.0, "closed by its fallback")
        fetches = exporter.fetches
        await wait_until_async(lambda: exporter.fetches >= fetches + 3, "more failing fetches")
        exporter.status = 200
        await until_budget(built, 0.5, "open again")
    assert [line["reason"] for line in log.lines_of("gate source lost")] == ["expected status 200, got 503"]
    assert len(log.lines_of("gate source recovered")) == 1
    assert [line["in_force"] for line in log.lines_of("gate on_missing applied")] == ["fallback"]
    [restored] = log.lines_of("gate source restored")
    assert "reason" not in restored


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"pods_url": "http://h/metrics"}, "pods_url"),
        ({"pods_url": "http://h/metrics", "pods_metric": "m"}, "max_count_per_pod"),
        ({"value_type": "load"}, "value_type"),
        ({"url": "vllm:8000"}, "url"),
    ],
)
def test_inconsistent_settings_stop_the_start(params: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        gate("endpoint-scrape", {"url": "http://h/metrics", "metric": "m", **params})
    assert caught.value.setting == f"queues[0].gate_params.{named}"


def test_metrics_with_similar_names_are_not_read() -> None:
    page = b"\n".join(
        [
            b"# HELP m of a test",
            b"# TYPE m gauge",
            b'm{a="1"} 2',
            b"m_total 5",
            b"mm 6",
            b'm{a="2",b="x y"} 3 1700000000000',
            b"m 4",
        ]
    )
    assert samples_of(page, "m", {}) == [2.0, 3.0, 4.0]
    assert samples_of(page, "m", {"a": "2"}) == [3.0]
    assert samples_of(page, "m_total", {}) == [5.0]
    assert samples_of(page, "n", {}) == []


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_samples_or_a_value_error(page: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(samples_of(b"m " + page, "m", {}), list)


@pytest.mark.parametrize("length", [16_384, 16_385])
def test_a_metrics_line_of_more_than_16_kib_is_refused_with_any_labels(length: int) -> None:
    start, end = b'm{a="', b'"} 1'
    line = start + b"x" * (length - len(start) - len(end)) + end
    page = b"other " + b"9" * 100_000 + b"\n" + line + b"\n"
    if length > 16_384:
        with pytest.raises(ValueError, match="a line of more than 16384 bytes"):
            samples_of(page, "m", {"a": "x"})
    else:
        assert samples_of(page, "m", {}) == [1.0]


COUNTED = {"metric": WAITING, "value_type": "saturation", "max_count_per_pod": "8", "admission": "counted"}


@pytest.mark.parametrize(
    ("value", "free"),
    [(0, 8), (5, 3), (5.5, 2), (8, 0), (9, 0), (-1, 0), (float("nan"), 0), (float("inf"), 0)],
)
async def test_a_counted_reading_admits_its_free_places_and_no_more(
    exporter: Exporter, from_pages: GateSources, value: float, free: int
) -> None:
    exporter.set(WAITING, value)
    async with started("endpoint-scrape", {"url": exporter.url, **COUNTED}, from_pages) as built:
        assert isinstance(built, CountedScrapeGate)
        verdicts = [await built.admit(request()) for _ in range(9)]
    assert sum(isinstance(verdict, Go) for verdict in verdicts) == free
    assert built.budget() == 0.0


@pytest.mark.parametrize("wrong", [{"max_count_per_pod": "0"}, {"value_type": "budget"}, {"admission": "other"}])
def test_counted_needs_a_capacity_and_a_saturation(from_pages: GateSources, wrong: dict[str, str]) -> None:
    with pytest.raises(InvalidSetting):
        gate("endpoint-scrape", {"url": "http://h/metrics", **COUNTED, **wrong}, from_pages)
