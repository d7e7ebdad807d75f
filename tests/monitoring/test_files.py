"""Rules and dashboard use existing metrics, and each alert fires when it should."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from handlers.telemetry.families import METRIC_PREFIX
from tests.monitoring.files import (
    ALERTS,
    DASHBOARD,
    PROMETHEUS_RULE,
    RUNBOOK,
    alerts,
    dashboard,
    metrics_of,
    panels,
)
from tests.servers.presence import not_found
from tests.telemetry.metrics_page import labels_by_name

QUEUE = '{queue_id="q",queue_name="q",pool_name="p"}'
READING = '{queue_id="q",queue_name="q",pool_name="p",inference_pool="i"}'

# Metrics of a healthy queue, once a minute for two hours.
HEALTHY = {
    f"broker_backlog{QUEUE}": "5x120",
    f"broker_backlog_source_available{QUEUE}": "1x120",
    f"dispatched_requests_total{QUEUE}": "0+600x120",
    f"successful_requests_total{QUEUE}": "0+590x120",
    f"failed_requests_total{QUEUE}": "0+5x120",
    f"exceeded_deadline_requests_total{QUEUE}": "0+5x120",
    f"request_retries_total{QUEUE}": "0+20x120",
    f"dead_letters_total{QUEUE}": "0x120",
    f"lease_losses_total{QUEUE}": "0x120",
    f"reclaimed_requests_total{QUEUE}": "0x120",
    f'deadline_proximity_millis_bucket{QUEUE[:-1]},le="0.0"}}': "0x120",
    f'result_publish_time_millis_bucket{QUEUE[:-1]},le="5.0"}}': "0+600x120",
    f'result_publish_time_millis_bucket{QUEUE[:-1]},le="5000.0"}}': "0+600x120",
    f'result_publish_time_millis_bucket{QUEUE[:-1]},le="+Inf"}}': "0+600x120",
    f'nacks_total{QUEUE[:-1]},reason="not_recorded"}}': "0x120",
    f'nacks_total{QUEUE[:-1]},reason="handler_unavailable"}}': "0x120",
    f"dispatch_budget{QUEUE}": "1x120",
    'dispatch_budget{queue_id="",queue_name="",pool_name="p"}': "0.5x120",
    f'gate_closed{QUEUE[:-1]},gate_type="g"}}': "0x120",
    f"gate_metric_source_available{READING}": "1x120",
    'ready{job="j",instance="i"}': "1x120",
    'open_circuits{job="j",instance="i"}': "0x120",
    'claims_refused{job="j",instance="i"}': "0x120",
    'config_refused{job="j",instance="i"}': "0x120",
    'refused_callers_total{status="401"}': "0x120",
}

# Differences from that, and the alert that each must raise.
AILING = {
    "AsyncProcessorQueueStuck": {f"dispatched_requests_total{QUEUE}": "7x120"},
    "AsyncProcessorLateInQueue": {
        f'deadline_proximity_millis_bucket{QUEUE[:-1]},le="0.0"}}': "3x120",
    },
    "AsyncProcessorDeadlinesMissed": {f"exceeded_deadline_requests_total{QUEUE}": "0+60x120"},
    "AsyncProcessorFailures": {f"failed_requests_total{QUEUE}": "0+100x120"},
    "AsyncProcessorRetryStorm": {f"request_retries_total{QUEUE}": "0+400x120"},
    "AsyncProcessorResultsNotRecorded": {f'nacks_total{QUEUE[:-1]},reason="not_recorded"}}': "0+1x120"},
    "AsyncProcessorHandlersUnreachable": {f'nacks_total{QUEUE[:-1]},reason="handler_unavailable"}}': "0+30x120"},
    "AsyncProcessorDeadLetters": {f"dead_letters_total{QUEUE}": "0x110 1x10"},
    "AsyncProcessorLeasesLost": {f"lease_losses_total{QUEUE}": "0x110 1x10"},
    "AsyncProcessorOwnersDie": {f"reclaimed_requests_total{QUEUE}": "0x110 9x10"},
    "AsyncProcessorRedisUnreachable": {f"broker_backlog_source_available{QUEUE}": "1x100 0x20"},
    "AsyncProcessorNotReady": {'ready{job="j",instance="i"}': "1x90 0x30"},
    "AsyncProcessorGateBlind": {f"gate_metric_source_available{READING}": "1x100 0x20"},
    "AsyncProcessorGateClosed": {f'gate_closed{QUEUE[:-1]},gate_type="g"}}': "0x20 1x100"},
    "AsyncProcessorSlowRecording": {f'result_publish_time_millis_bucket{QUEUE[:-1]},le="5.0"}}': "0x120"},
    "AsyncProcessorCircuitOpen": {'open_circuits{job="j",instance="i"}': "0x100 1x20"},
    "AsyncProcessorClaimsRefused": {'claims_refused{job="j",instance="i"}': "0x100 1x20"},
    "AsyncProcessorConfigRefused": {'config_refused{job="j",instance="i"}': "0x100 1x20"},
    "AsyncProcessorCallersRefused": {'refused_callers_total{status="401"}': "0+30x120"},
}

KEDA = 'namespace="keda",scaledObject="async-processor-poller",scaler="redisScaler"'
# Metrics of KEDA's operator while no poller runs.
WITHOUT_POLLER = {
    "requests are pending": {f'keda_scaler_metrics_value{{{KEDA},metric="s0-redis"}}': "5x120"},
    "KEDA cannot read Redis": {f"keda_scaler_detail_errors_total{{{KEDA}}}": "0+15x120"},
}


def promtool(*arguments: str | Path) -> str:
    """The output of promtool; fails if promtool does."""
    program = shutil.which("promtool")
    if program is None:
        not_found("promtool")
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def firing_test(series: dict[str, str], expected: list[str]) -> dict[str, Any]:
    """A test of promtool's: these alerts, and no other, fire after two hours of `series`."""
    return {
        "interval": "1m",
        "input_series": [
            {
                "series": name if name.startswith(("process", "keda")) else f"{METRIC_PREFIX}_{name}",
                "values": values,
            }
            for name, values in series.items()
        ],
        "promql_expr_test": [
            {
                "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": "2h",
                "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in expected],
            }
        ],
    }


def test_promtool_accepts_the_rules() -> None:
    assert f"{len(alerts())} rules found" in promtool("check", "rules", "--lint-fatal", ALERTS)


def check_firing(tests: list[dict[str, Any]], folder: Path) -> None:
    file = folder / "tests.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "tests": tests}))
    promtool("test", "rules", file)


@pytest.mark.parametrize("alert", AILING)
def test_each_alert_fires_for_its_reason_alone(alert: str, tmp_path: Path) -> None:
    check_firing([firing_test(HEALTHY | AILING[alert], [alert])], tmp_path)


def test_no_alert_fires_in_good_health(tmp_path: Path) -> None:
    full = {f"dispatch_budget{QUEUE}": "0x120"}  # by queued requests, which are replaced when they end
    check_firing([firing_test(HEALTHY, []), firing_test(HEALTHY | full, [])], tmp_path)


def test_a_budget_of_0_that_stops_all_requests_is_a_closed_gate(tmp_path: Path) -> None:
    closed = {f"dispatch_budget{QUEUE}": "0x120", f"dispatched_requests_total{QUEUE}": "7x120"}
    check_firing([firing_test(HEALTHY | closed, ["AsyncProcessorGateClosed"])], tmp_path)


@pytest.mark.parametrize("reason", WITHOUT_POLLER)
def test_a_queue_without_a_poller_is_reported_alone_and_only_if_no_other_works(reason: str, tmp_path: Path) -> None:
    tests = [
        firing_test(HEALTHY | WITHOUT_POLLER[reason], []),
        firing_test(WITHOUT_POLLER[reason], ["AsyncProcessorQueueStuck"]),
    ]
    check_firing(tests, tmp_path)


def test_every_alert_is_tested_and_has_instructions() -> None:
    assert set(AILING) == set(alerts())
    for name, rule in alerts().items():
        assert rule["labels"]["severity"] in ("warning", "critical"), name
        assert {"summary", "description"} <= rule["annotations"].keys(), name


def test_the_runbook_names_every_alert() -> None:
    named = set(re.findall(r"`(AsyncProcessor\w+)`", RUNBOOK.read_text(encoding="utf-8")))
    assert named == set(alerts())


def test_every_alert_names_the_section_of_the_runbook_that_names_it() -> None:
    sections = re.split(r"^## ", RUNBOOK.read_text(encoding="utf-8"), flags=re.M)[1:]
    titles = {tuple(section.splitlines()[0].split(". ", 1)): section for section in sections}
    for name, rule in alerts().items():
        found = re.fullmatch(r"docs/runbook\.md, section (\d+) \((.+)\)", rule["annotations"]["runbook"])
        assert found is not None, name
        assert f"`{name}`" in titles[found[1], found[2]], name


def test_the_operator_gets_the_same_rules() -> None:
    manifest = yaml.safe_load(PROMETHEUS_RULE.read_text())
    assert manifest["spec"] == yaml.safe_load(ALERTS.read_text())


def known_names() -> set[str]:
    """Every name that a page can hold, histograms in their parts."""
    known = set()
    for name, (kind, _, _) in labels_by_name().items():
        parts = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        known |= {f"{METRIC_PREFIX}_{name}{part}" for part in parts}
    return known


def test_rules_and_dashboard_use_existing_metrics() -> None:
    asked = {name for rule in alerts().values() for name in metrics_of(rule["expr"])}
    asked |= {name for panel in panels() for name in metrics_of(panel.expression)}
    assert asked - known_names() == set()


def test_every_metric_of_the_reference_that_counts_something_is_on_the_dashboard() -> None:
    shown = {name for panel in panels() for name in metrics_of(panel.expression)}
    for name in (
        "tokens_total",
        "gate_decisions_total",
        "aimd_window",
        "inflight_requests",
        "broker_backlog",
    ):
        assert f"{METRIC_PREFIX}_{name}" in shown


def test_panels_do_not_overlap_and_have_ids_of_their_own() -> None:
    found = dashboard()["panels"]
    assert len({panel["id"] for panel in found}) == len(found)
    cells: set[tuple[int, int]] = set()
    for panel in found:
        at = panel["gridPos"]
        own = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not own & cells, panel["title"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        cells |= own


@pytest.mark.parametrize("word", ["http://", "https://", "localhost", "/home"])
def test_the_dashboard_names_no_machine(word: str) -> None:
    assert word not in DASHBOARD.read_text()
