"""`async-processor check` on a working stack, and on one with faults."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis
from click.testing import CliRunner, Result

from handlers.cli import main
from handlers.demo.stack import Stack, StackOptions
from handlers.gates.sources import NOT_READ_YET
from handlers.wiring.checks import clock_finding
from tests.gates.exporter import Exporter, running_exporter
from tests.servers.forked import LONG_REDIS_TIMEOUT, ForkedChild
from tests.servers.prometheus import running_prometheus
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(600)
LONG_TIMEOUTS = {**LONG_REDIS_TIMEOUT, "CONNECT_TIMEOUT_SECONDS": "60"}
NOT_IN_TIME = ("TimeoutError", NOT_READ_YET)
"""The beginnings of findings about a gate whose source is slower than its short limit."""


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with Stack(StackOptions(child=ForkedChild, has_pubsub=False)) as running:
        yield running


def check(*arguments: str, **variables: str) -> Result:
    """The outcome of the command with these settings and no others."""
    others = dict.fromkeys(set(os.environ) - {"PATH", "HOME"})
    return CliRunner().invoke(
        main, ["check", *arguments], env={**others, "COLUMNS": "200", **LONG_TIMEOUTS, **variables}
    )


def findings(*arguments: str, **variables: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit code and the findings by their names, once each gate's source was read in time or refused."""

    def checked() -> list[tuple[int, dict[str, dict[str, Any]]]]:
        done = check("--json", *arguments, **variables)
        found = msgspec.json.decode(done.stdout)["findings"]
        if any(one["found"].startswith(NOT_IN_TIME) for one in found):
            return []
        return [(done.exit_code, {one["what"]: one for one in found})]

    [outcome] = wait_until(checked, "sources that answer in time", timeout_seconds=240)
    return outcome


def test_a_sound_stack_has_no_fault(stack: Stack) -> None:
    code, found = findings(REDIS_URL=stack.redis_url, IGW_BASE_URL=stack.gateway_url, HANDLER_URL=stack.handler_url)

    assert code == 0
    assert {one["state"] for one in found.values()} == {"ok"}
    assert "queue request-sortedset" in found


def test_a_missing_resource_is_a_fault_with_a_fix() -> None:
    code, found = findings(REDIS_URL="redis://127.0.0.1:1", IGW_BASE_URL="http://127.0.0.1:1")

    assert code == 1
    assert found.pop("memory")["state"] == "ok"
    assert all(one["state"] == "fault" and one["fix"] for one in found.values())


def test_a_default_gateway_that_does_not_resolve_is_reported_as_the_default() -> None:
    code, found = findings("--only", "gateway")
    [finding] = found.values()
    assert (code, finding["found"]) == (1, "dns")
    assert finding["fix"].startswith("IGW_BASE_URL has its default, http://infra-")
    _, found = findings("--only", "gateway", IGW_BASE_URL="http://no-such-host.invalid")
    assert [one["fix"] for one in found.values()] == ["the host name in IGW_BASE_URL does not resolve on this machine"]


def test_a_key_of_another_type_is_named(stack: Stack) -> None:
    store = redis.Redis.from_url(stack.redis_url, socket_timeout=60)
    store.set("check-wrong-type", "x")

    code, found = findings(
        "--only",
        "redis",
        REDIS_URL=stack.redis_url,
        REQUEST_QUEUE_NAME="check-wrong-type",
        RETRY_QUEUE_NAME="r",
    )

    store.close()
    assert code == 1
    assert found["key check-wrong-type"]["found"] == "is a string, not a zset"


def test_settings_are_printed_with_secrets_masked(stack: Stack) -> None:
    url = stack.redis_url.replace("redis://", "redis://default:canary-in-url@")

    done = check("--only", "gateway", REDIS_URL=url, REDIS_PASSWORD="canary", DISPATCH_TOKEN="canary-token-0123456789")

    assert "canary" not in done.stdout + done.stderr
    assert "REDIS_PASSWORD" in done.stdout


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"IGW_BASE_URL": "gateway:80"}, "IGW_BASE_URL"),
        ({"PROMETHEUS_URL": "ftp://x"}, "PROMETHEUS_URL"),
        ({"WORKERS": "many"}, "WORKERS"),
        ({"WORKERS": "0"}, "WORKERS"),
        ({"CONFIG_FILE": "/no/such/file"}, "CONFIG_FILE"),
        ({"HEARTBEAT_SECONDS": "15"}, "HEARTBEAT_SECONDS"),
        ({"REDIS_URL": "http://redis"}, "REDIS_URL"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(variables: dict[str, str], named: str) -> None:
    done = check(**variables)

    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {named}: ")
    assert done.stderr.count("\n") == 1


def test_an_unknown_key_in_the_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("queues:\n  - queue_name: a\n    gate_typ: constant\n")

    done = check(CONFIG_FILE=str(file))

    assert done.exit_code == 2
    assert "gate_typ" in done.stderr
    assert done.stderr.count("\n") == 1


MISTAKES = """
queues:
  - {queue_nam: a}
  - {queue_name: b, worker_pool: fast, labels: {tier: bach}}
pools:
  - {id: default, workers: 64x}
"""
LATE_MISTAKES = """
queues:
  - {queue_name: b, labels: {tier: bach}, gate_type: redis-quotta}
pools:
  - {id: default, merge_policy: tier_priority, lane_objectives: {reserve-batch: low}, gate_type: redis-quota,
     gate_params: {adress: redis, limit: two}}
"""


def test_all_mistakes_are_reported_in_one_run(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"

    variables = {"LEASE_SECOND": "3", "LEASE_SECONDS": "a", "WORKERS": "-1"}
    named = [line.split(": ")[1] for line in check(**variables).stderr.splitlines()]
    assert sorted(named) == ["LEASE_SECOND", "LEASE_SECONDS", "WORKERS"]

    file.write_text(MISTAKES)
    done = check(CONFIG_FILE=str(file))
    named = [line.split(": ")[1] for line in done.stderr.splitlines()]
    assert named == ["queues[0].queue_nam", "queues[1].worker_pool", "pools[0].workers"]
    assert "expected an integer from 1 to 100000, got '64x'" in done.stderr

    file.write_text(LATE_MISTAKES)
    done = check(CONFIG_FILE=str(file))
    assert done.exit_code == 2
    named = [line.split(": ")[1] for line in done.stderr.splitlines()]
    assert named == [
        *("pools[0].lane_objectives.reserve-batch", "pools[0].merge_policy"),
        *("pools[0].gate_params.adress", "pools[0].gate_params.limit", "queues[0].gate_type"),
    ]
    assert "did you mean redis-quota?" in done.stderr


@pytest.mark.parametrize("command", [("check",), ("poll",), ("serve", "--target", "dispatch"), ("status",)])
def test_each_start_reports_faults_of_all_its_steps(command: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        "queues: [{queue_name: a, igw_base: x},"
        " {queue_name: b, gate_type: redis-quota, gate_params: {address: r, limit: two}}]"
    )
    variables = {"WORKERS": "many", "IGW_BASE_URL": "http://[::1", "GATEWAY_TOKEN_FILE": "/nowhere"}
    done = CliRunner().invoke(main, command, env={**variables, "CONFIG_FILE": str(file)})
    assert done.exit_code == 2
    assert {line.split(": ")[1] for line in done.stderr.splitlines()} == {
        *variables,
        *("queues[0].igw_base", "queues[1].gate_params.limit"),
    }


def test_an_unknown_tier_is_a_warning_with_the_known_ones(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("queues: [{queue_name: b, labels: {tier: bach}}]")
    code, found = findings("--only", "memory", CONFIG_FILE=str(file))
    assert (code, found["queues[0].labels.tier"]["state"]) == (0, "warning")
    assert "interactive, async, batch" in found["queues[0].labels.tier"]["fix"]


def test_the_memory_check_counts_the_workers_of_the_pools_in_use(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    queue = "queues: [{queue_name: b, worker_pool_id: small}]"
    file.write_text(f"{queue}\npools: [{{id: small, workers: 8}}, {{id: unused, workers: 500}}]")
    _, found = findings("--only", "memory", CONFIG_FILE=str(file))
    assert "a poller of 8 workers" in found["memory"]["found"]


def test_without_a_part_to_check_the_command_reports_that(tmp_path: Path) -> None:
    assert check("--only", "gates").stdout.startswith("nothing to check")


@pytest.mark.parametrize("setting", ["RESULT_TOPIC_ID", "DEAD_LETTER_TOPIC_ID"])
def test_an_invalid_topic_name_is_reported_with_its_setting(setting: str) -> None:
    topics = {"RESULT_TOPIC_ID": "results", setting: "x"}
    done = check("--only", "pubsub", PROJECT_ID="project", PUBSUB_EMULATOR_HOST="127.0.0.1:1", **topics)
    assert done.exit_code == 2
    assert f"error: {setting}: expected 3 to 255 letters" in done.stderr


def test_a_gate_of_an_unused_pool_is_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    limit = "gate_type: local-max-concurrency, gate_params: {limit: 1}"
    file.write_text(
        f"pools: [{{id: big, {limit}}}, {{id: default, {limit}}}]\nqueues: [{{queue_name: a, worker_pool_id: default}}]"
    )
    code, found = findings("--only", "gates", CONFIG_FILE=str(file))
    warned = found.pop("pools[0].gate_type")
    assert (code, {one["state"] for one in found.values()}) == (0, {"ok"})
    assert warned["state"] == "warning"
    assert "no queue or subscription uses the pool 'big'" in warned["found"]
    assert "worker_pool_id" in warned["fix"]


def test_a_gate_is_ok_if_its_source_has_the_value_and_else_a_fault(stack: Stack, tmp_path: Path) -> None:
    store = redis.Redis.from_url(stack.redis_url, socket_timeout=60)
    store.set("dispatch-gate-budget", "0.5")
    store.close()
    address = stack.redis_url.removeprefix("redis://")
    file = tmp_path / "config.json"
    file.write_text(
        msgspec.json.encode(
            {
                "pools": [{"id": "p", "gate_type": "redis", "gate_params": {"address": address}}],
                "queues": [
                    {
                        "queue_name": "a",
                        "worker_pool_id": "p",
                        "gate_type": "endpoint-scrape",
                        "gate_params": {"url": f"{stack.gateway_url}/metrics", "metric": "no_such_metric"},
                    }
                ],
            }
        ).decode()
    )

    code, found = findings(
        "--only", "gates", REDIS_URL=stack.redis_url, CONFIG_FILE=str(file), GATE_SOURCE_TIMEOUT_SECONDS="1"
    )

    assert code == 1
    assert found["gate pools[0] (pool p) redis"]["found"] == "budget 0.50, open: reads 0.5, closes at 0"
    missing = found["gate queues[0] (pool p) endpoint-scrape"]
    assert missing["found"] == "no series no_such_metric on the page; rule in force: fallback"
    assert (missing["state"], "compare metric" in missing["fix"]) == ("fault", True)


@pytest.fixture(scope="module")
def exporter() -> Iterator[Exporter]:
    with running_exporter() as running:
        running.set("saturation", 1.1)
        yield running


@pytest.fixture(scope="module")
def prometheus_url(exporter: Exporter) -> Iterator[str]:
    with running_prometheus([exporter.address]) as url:
        yield url


def gate_findings(tmp_path: Path, gate_type: str, params: dict[str, Any], **variables: str) -> dict[str, Any]:
    """The findings for one gate of the pool."""
    file = tmp_path / "config.json"
    pool = {"id": "default", "gate_type": gate_type, "gate_params": params}
    file.write_bytes(msgspec.json.encode({"pools": [pool], "queues": [{"queue_name": "a"}]}))
    return findings("--only", "gates", CONFIG_FILE=str(file), **{"GATE_SOURCE_TIMEOUT_SECONDS": "1", **variables})[1]


def test_a_closed_gate_is_reported_with_its_reading(exporter: Exporter, tmp_path: Path) -> None:
    params = {"url": exporter.url, "metric": "saturation", "budget_means": "headroom", "hold_back": -0.02}
    found = gate_findings(tmp_path, "endpoint-scrape", params)
    text = found["gate pools[0] (pool default) endpoint-scrape"]["found"]
    assert text == "budget 0.00, closed: reads 1.1, closes at 1"


def test_each_inner_gate_has_its_own_finding(prometheus_url: str, tmp_path: Path) -> None:
    quota = {"address": "127.0.0.1:1", "attribute": "tenant", "limit": 1}
    inner = [
        {"gate_type": "redis-quota", "gate_params": quota},
        {"gate_type": "prometheus-saturation", "gate_params": {"pool": "nopool"}},
        {"gate_type": "prometheus-query", "gate_params": {"query": "sum(up"}},
        {"gate_type": "local-max-concurrency", "gate_params": {"limit": 2}},
    ]
    variables = {"PROMETHEUS_URL": prometheus_url, "GATE_SOURCE_TIMEOUT_SECONDS": "4"}
    found = gate_findings(tmp_path, "composite", {"gates": inner}, **variables)
    by_type = {what.rpartition(" ")[2]: one for what, one in found.items()}
    assert list(by_type) == ["redis-quota", "prometheus-saturation", "prometheus-query", "local-max-concurrency"]
    assert by_type["redis-quota"]["found"].startswith("ConnectionError")
    assert 'flow_control_pool_saturation{inference_pool="nopool"}' in by_type["prometheus-saturation"]["found"]
    assert by_type["prometheus-query"]["found"].startswith("Prometheus refuses the query: ")
    assert "correct the query" in by_type["prometheus-query"]["fix"]
    assert by_type["local-max-concurrency"]["state"] == "ok"


def test_only_the_api_of_prometheus_is_ok(exporter: Exporter, prometheus_url: str) -> None:
    def prometheus(**variables: str) -> dict[str, Any]:
        [finding] = findings("--only", "prometheus", **variables)[1].values()
        return finding

    assert prometheus()["found"] == "PROMETHEUS_URL is not set"
    assert prometheus(PROMETHEUS_URL=prometheus_url)["state"] == "ok"
    page = prometheus(PROMETHEUS_URL=f"http://{exporter.address}")
    assert (page["state"], page["found"]) == ("fault", "the answer is not one of the Prometheus API")


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("http://127.0.0.1:1/metrics", "http://127.0.0.1:1/metrics refused the connection"),
        (
            "http://no-such-host.invalid/",
            "http://no-such-host.invalid/ has a host name that does not resolve",
        ),
        ("{gateway}/no-such-page", "expected status 200, got 404"),
        ("{tls}/metrics", "{tls}/metrics failed the TLS handshake"),
    ],
)
def test_an_unreachable_source_of_a_gate_is_explained(stack: Stack, tmp_path: Path, address: str, reason: str) -> None:
    urls = {"gateway": stack.gateway_url, "tls": stack.gateway_url.replace("http:", "https:")}
    gate = {
        "gate_type": "endpoint-scrape",
        "gate_params": {"url": address.format(**urls), "metric": "saturation"},
    }
    file = tmp_path / "config.json"
    file.write_bytes(
        msgspec.json.encode(
            {"pools": [{"id": "big", **gate}], "queues": [{"queue_name": "a", "worker_pool_id": "big"}]}
        )
    )
    code, found = findings("--only", "gates", CONFIG_FILE=str(file), GATE_SOURCE_TIMEOUT_SECONDS="1")
    [finding] = found.values()
    assert (code, finding["what"]) == (1, "gate pools[0] (pool big) endpoint-scrape")
    assert finding["found"].startswith(reason.format(**urls))
    assert "is the source running" in finding["fix"]


def test_enabled_features_need_their_own_rights(stack: Stack) -> None:
    store = redis.Redis.from_url(stack.redis_url, socket_timeout=60)
    keys = (
        "~request-sortedset*",
        "~retry-sortedset",
        "~result-list",
        "~request-*:x",
        "~request-cancellations",
    )
    user = ("ACL", "SETUSER", "plain", "on", ">plain-password", *keys, "+@all")
    store.execute_command(*user)  # type: ignore[no-untyped-call]  # untyped
    url = stack.redis_url.replace("redis://", "redis://plain:plain-password@")

    _, without = findings("--only", "redis", REDIS_URL=url)
    code, found = findings("--only", "redis", REDIS_URL=url, RESULT_APART_BYTES="9", RESULT_PER_REQUEST="true")

    store.execute_command("ACL", "DELUSER", "plain")  # type: ignore[no-untyped-call]  # untyped
    store.close()
    assert without["queue request-sortedset"]["state"] == "ok"
    assert code == 1
    reported = found["queue request-sortedset"]["found"]
    assert "LPUSH result-list:result-of:x" in reported
    assert "SET result-payload:x" in reported


def test_a_user_without_the_right_to_write_results_gets_an_error(stack: Stack) -> None:
    store = redis.Redis.from_url(stack.redis_url, socket_timeout=60)
    user = ("ACL", "SETUSER", "narrow", "on", ">narrow-password", "~*", "+@all", "-lpush")
    store.execute_command(*user)  # type: ignore[no-untyped-call]  # untyped
    url = stack.redis_url.replace("redis://", "redis://narrow:narrow-password@")

    code, found = findings("--only", "redis", REDIS_URL=url)

    store.execute_command("ACL", "DELUSER", "narrow")  # type: ignore[no-untyped-call]  # untyped
    store.close()
    assert code == 1
    assert found["queue request-sortedset"]["found"] == "may not LPUSH result-list"


def test_findings_are_printed_first_and_then_only_changed_settings(stack: Stack) -> None:
    variables = {"REDIS_URL": stack.redis_url, "IGW_BASE_URL": stack.gateway_url}
    short, whole = check(**variables).stdout, check("--all", **variables).stdout
    assert short.index("queue request-sortedset") < short.index("REDIS_URL ")
    assert f"redis {stack.redis_url}: answers in " in short
    assert "LOG_LEVEL" not in short
    assert "LOG_LEVEL" in whole


def test_tls_to_a_plain_port_differs_from_a_bad_certificate(stack: Stack) -> None:
    _, found = findings(
        "--only",
        "gateway",
        IGW_BASE_URL=stack.gateway_url.replace("http:", "https:"),
        REDIS_URL=stack.redis_url,
    )
    [finding] = found.values()
    assert (finding["state"], "answers without TLS" in finding["fix"]) == ("fault", True)


@pytest.mark.parametrize(
    ("server_seconds", "round_trip_seconds", "state"),
    [(1_002.7, 2.7, "ok"), (1_003.0, 0.1, "fault"), (995.0, 2.0, "fault")],
)
def test_a_slow_reply_is_not_reported_as_clock_skew(
    server_seconds: float, round_trip_seconds: float, state: str
) -> None:
    """The server reads its clock at any moment of the round trip that began at 1,000 s."""
    assert clock_finding(server_seconds, 1_000.0, round_trip_seconds).state == state
