"""Dashboard and rules against a real Prometheus that scrapes the real poller and handler under traffic."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from handlers.client import Client, NewRequest
from handlers.demo.servers import free_port
from handlers.demo.stack import Stack, StackOptions
from tests.monitoring.files import ALERTS, alerts, panels
from tests.servers.forked import ForkedChild
from tests.servers.prometheus import running_prometheus
from tests.servers.valkey import LONG_LIMIT
from tests.waiting import NotInTime, wait_until

pytestmark = pytest.mark.xdist_group("monitoring")  # one stack for all of them

TOKEN = "a-token-for-prometheus"
REQUESTS = 60


def config(gateway_port: int) -> dict[str, Any]:
    """A queue and a pool with gates, so that they have something to show."""
    reading = {"url": f"http://127.0.0.1:{gateway_port}/metrics", "metric": "vllm:kv_cache_usage_perc"}
    return {
        "queues": [
            {
                "queue_name": "request-sortedset",
                "id": "live",
                "gate_type": "endpoint-scrape",
                "gate_params": {**reading, "absent_value": 0.1},
            }
        ],
        "pools": [{"id": "default", "gate_type": "aimd"}],
    }


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prometheus that scrapes a stack in which requests were answered."""
    file = Path(tmp_path_factory.mktemp("config"), "config.json")
    port = free_port()
    file.write_text(json.dumps(config(port)))
    options = StackOptions(
        child=ForkedChild,
        gateway_port=port,
        has_pubsub=False,
        gateway_arguments=("--capacity", "16", "--time-to-first-token", "0.02"),
        variables={
            "METRICS_TOKEN": TOKEN,
            "CONFIG_FILE": str(file),
            "WORKERS": "32",
            "LEASE_SECONDS": "600",
            "REDIS_TIMEOUT_SECONDS": "60",
        },
    )
    with Stack(options) as stack:
        addresses = [urlsplit(url).netloc for url in (stack.poller_pages_url, stack.handler_url)]
        with running_prometheus(addresses, token=TOKEN, rules=[ALERTS]) as url:
            wait_until(lambda: len(query(url, "up == 1")) == 2, "the first scrapes")
            answer_requests(stack)
            yield url


def answer_requests(stack: Stack) -> None:
    """Put requests through, and wait for their results."""
    payload = {"model": "m", "prompt": "hello", "max_tokens": 4}
    with Client.for_redis(stack.redis_url, access=LONG_LIMIT) as client:
        wanted = [NewRequest(payload=payload, deadline=timedelta(seconds=120)) for _ in range(REQUESTS)]
        client.submit_many(wanted)
        with client.results(limit=REQUESTS) as results:
            for delivery in results:
                assert delivery.result.status_code == 200, delivery.result
                delivery.ack()


def query(url: str, expression: str) -> list[dict[str, Any]]:
    """The samples of an expression; fails with Prometheus' own words."""
    answer = httpx.get(f"{url}/api/v1/query", params={"query": expression}, timeout=60).json()
    assert answer["status"] == "success", (expression, answer)
    found: list[dict[str, Any]] = answer["data"]["result"]
    return found


def test_both_processes_count_the_requests(prometheus: str) -> None:
    def value(expression: str) -> float:
        samples = query(prometheus, expression)
        return float(samples[0]["value"][1]) if samples else -1.0

    total = "sum (llm_d_async_async_successful_requests_total{queue_id='live'})"
    deliveries = "sum (llm_d_async_async_handler_deliveries_total{outcome='answered'})"
    tokens = "sum (llm_d_async_async_tokens_total{direction='output'})"
    # Prometheus reads each process at a time of its own.
    wait_until(lambda: value(total) == REQUESTS, "all results, counted once")
    wait_until(lambda: value(deliveries) >= REQUESTS, "the handler's deliveries")
    wait_until(lambda: value(tokens) >= REQUESTS, "the tokens of all answers")
    wait_until(lambda: value("sum (llm_d_async_async_ready)") == 2, "both processes ready")


def test_each_expression_of_the_dashboard_has_data(prometheus: str) -> None:
    empty = list(panels())
    assert empty

    def all_have_data() -> bool:
        empty[:] = [panel for panel in empty if not query(prometheus, panel.expression)]
        return not empty

    with contextlib.suppress(NotInTime):
        wait_until(all_have_data, "data of every panel")
    assert [f"{panel.title}: {panel.expression}" for panel in empty] == []


def test_each_alert_is_evaluated_and_none_is_raised(prometheus: str) -> None:
    def rules() -> list[dict[str, Any]]:
        data = httpx.get(f"{prometheus}/api/v1/rules", timeout=60).json()["data"]
        return [rule for group in data["groups"] for rule in group["rules"]]

    wait_until(lambda: all(rule["health"] != "unknown" for rule in rules()), "all rules evaluated")
    assert {rule["name"] for rule in rules()} == set(alerts())
    assert [rule["lastError"] for rule in rules() if rule["health"] != "ok"] == []
    assert [rule["name"] for rule in rules() if rule["state"] == "firing"] == []
