"""Every benchmark runs; its figures are checked only with the marker `bench`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from tests.bench.__main__ import BARE, SCENARIOS, main, missing_servers
from tests.servers.presence import not_found


@pytest.mark.parametrize("name", [name for name in SCENARIOS if not name.endswith(("512 workers", "2,000 workers"))])
def test_a_scenario_runs_and_has_figures(name: str) -> None:
    for server in missing_servers([name]):
        not_found(server)
    scenario, _, quick_count = SCENARIOS[name]

    figures = scenario(quick_count)

    assert figures
    assert all(value >= 0 for value in figures.values()), figures


def test_a_missing_server_is_reported_with_its_install_command_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tests.bench.__main__.nginx_program", lambda: None)
    run = CliRunner().invoke(main, ["nginx", "--quick"])
    assert run.exit_code == 1
    assert "missing: nginx. Install with: make servers" in run.output
    assert "..." not in run.output, "nothing was measured"


def test_a_scenario_that_fails_leaves_the_figures_of_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(_count: int) -> dict[str, float]:
        raise RuntimeError("the door did not start")

    monkeypatch.setitem(SCENARIOS, BARE, (lambda count: {"CPU ms": float(count)}, 2, 1))
    monkeypatch.setitem(SCENARIOS, "handler alone", (broken, 2, 1))
    monkeypatch.setitem(SCENARIOS, "push door", (lambda count: {"CPU ms": 3.0 * count}, 2, 1))
    path = tmp_path / "figures.json"
    for name in [name for name in SCENARIOS if name not in (BARE, "handler alone", "push door")]:
        monkeypatch.delitem(SCENARIOS, name)
    run = CliRunner().invoke(main, ["--quick", "--json", str(path)])
    assert run.exit_code == 1
    assert "handler alone failed" in run.output
    assert "the door did not start" in run.output
    assert msgspec.json.decode(path.read_bytes()) == {BARE: {"CPU ms": 1.0}, "push door": {"CPU ms": 3.0}}


def test_the_runs_of_a_scenario_are_spread_over_the_whole_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def noting(name: str) -> Callable[[int], dict[str, float]]:
        def scenario(_count: int) -> dict[str, float]:
            ran.append(name)
            return {"place": float(len(ran))}

        return scenario

    for name in list(SCENARIOS):
        monkeypatch.delitem(SCENARIOS, name)
    for name in (BARE, "door"):
        monkeypatch.setitem(SCENARIOS, name, (noting(name), 1, 1))
    assert CliRunner().invoke(main, ["--runs", "3"]).exit_code == 0
    assert ran == [BARE, "door"] * 3


@pytest.mark.bench
def test_an_outage_costs_few_calls_and_a_deep_queue_keeps_its_order() -> None:
    scenario, _, quick_count = SCENARIOS["gateway outage"]
    outage = scenario(quick_count)
    assert outage["probes/s"] <= 1.5, "an open circuit sends one call a second"
    assert outage["calls a request at 10 %"] <= 1.5, "a budget keeps retries few"
    scenario, _, quick_count = SCENARIOS["100,000 queued"]
    assert scenario(quick_count)["worst place off"] < 200, "in deadline order, except requests in flight together"
