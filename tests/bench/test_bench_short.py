"""Every benchmark runs; its figures are judged only under the `bench` marker."""

from __future__ import annotations

import pytest

from tests.bench.__main__ import SCENARIOS


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_runs_and_has_figures(name: str) -> None:
    scenario, _, quick_count = SCENARIOS[name]

    figures = scenario(quick_count)

    assert figures
    assert all(value >= 0 for value in figures.values()), figures


@pytest.mark.bench
def test_an_outage_costs_few_calls_and_a_deep_queue_keeps_its_order() -> None:
    scenario, _, quick_count = SCENARIOS["gateway outage"]
    outage = scenario(quick_count)
    assert outage["probes/s"] <= 1.5, "an open circuit sends one call a second"
    assert outage["calls a request at 10 %"] <= 1.5, "a budget keeps retries few"
    scenario, _, quick_count = SCENARIOS["100,000 queued"]
    assert scenario(quick_count)["worst place off"] < 200, (
        "in deadline order, except requests in flight together"
    )
