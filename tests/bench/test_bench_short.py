"""The benchmarks run and give sane figures; how good they are is for `make bench` to show."""

from __future__ import annotations

import pytest

from tests.bench.__main__ import SCENARIOS


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_runs_and_its_figures_are_sane(name: str) -> None:
    scenario, _, quick_count = SCENARIOS[name]

    figures = scenario(quick_count)

    assert figures
    assert all(value >= 0 for value in figures.values()), figures
    assert figures.get("probes/s", 0) <= 1.5, "an open circuit sends one call a second"
    assert figures.get("calls a request at 10 %", 0) <= 1.5, "a budget keeps retries few"
    assert figures.get("worst place off", 0) < 200, "in deadline order, but for what is in flight together"
