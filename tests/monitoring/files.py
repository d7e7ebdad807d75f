"""The rules and the dashboard, read as Prometheus and Grafana read them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[2]
ALERTS = ROOT / "monitoring/alerts.yaml"
PROMETHEUS_RULE = ROOT / "monitoring/prometheus-rule.yaml"
RUNBOOK = ROOT / "docs/runbook.md"
DASHBOARD = ROOT / "monitoring/dashboard.json"


class Panel(NamedTuple):
    """One expression of the dashboard."""

    title: str
    expression: str


def alerts() -> dict[str, dict[str, Any]]:
    """The alert rules by name."""
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def panels(*, queue: str = ".*", rate_interval: str = "1m") -> Iterator[Panel]:
    """Every expression, its variables filled in."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"].replace("$queue", queue).replace("$__rate_interval", rate_interval)
            yield Panel(panel["title"], expression)


def metrics_of(expression: str) -> set[str]:
    """Our metric names in an expression."""
    return set(re.findall(r"llm_d_async_async_\w+", expression))
