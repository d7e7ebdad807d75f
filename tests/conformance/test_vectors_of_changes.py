"""The conformance vectors of the reference's changes in 2026, and a table of them."""

from __future__ import annotations

import base64
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Gauge
from redis.asyncio import Redis
from starlette.requests import Request

from handlers.client import AsyncClient, ClientOptions, IdempotencyConflict
from handlers.contract.errors import InvalidSetting
from handlers.demo.valkey import Valkey
from handlers.gates.gate import Go
from handlers.gates.metric.prometheus import PrometheusBudgetParameters, budget_queries
from handlers.gates.registry import GATE_KINDS
from handlers.redis_store.limits.limits import RedisGateStore
from handlers.settings.settings import load_settings
from handlers.telemetry.families import Families
from handlers.wiring.handler import Handler
from tests.conformance.test_files import FILES, GUIDE
from tests.conformance.test_vectors import VECTORS, Case, cases
from tests.gates.building import gate, request, sources
from tests.gates.exporter import running_exporter
from tests.gates.opening import started
from tests.servers.pubsub_broker import running_broker
from tests.servers.raw_http import answer, running_raw_http
from tests.servers.valkey import LONG_LIMIT

DEADLINE = 1_999_999_999


@cases("topics")
async def test_a_subscriptions_topic_wins_over_the_requests_and_the_default(tmp_path: Path, case: Case) -> None:
    """A whole handler with a configuration file, and a broker that speaks gRPC."""
    file = tmp_path / "topics.json"
    entry = {"subscriber_id": "s", **({"result_topic_id": case["entry"]} if case["entry"] else {})}
    file.write_text(json.dumps({"topics": [entry]}))
    body = {"id": "a", "deadline": DEADLINE, "payload": {}, "result_queue_name": case["message"]}
    data = base64.b64encode(json.dumps(body).encode()).decode()
    push = {"message": {"data": data, "messageId": "7"}, "subscription": "projects/project-1/subscriptions/s"}
    async with running_broker() as broker, running_raw_http() as gateway:
        gateway.reply(answer(200, b"{}"))
        settings = load_settings(
            {
                "IGW_BASE_URL": gateway.url,
                "PROJECT_ID": "project-1",
                "RESULT_TOPIC_ID": case["top_level"],
                "ALLOWED_RESULTS": "*",
                "PUBSUB_EMULATOR_HOST": broker.host,
                "PUSH_AUTH": "none",
                "CONFIG_FILE": str(file),
            }
        )
        handler = Handler(settings, "pubsub_push")
        assert (await handler.respond(_posted(json.dumps(push).encode()))).status_code == 204
        await handler.aclose()
        assert [topic for topic, _, _ in broker.published] == [f"projects/project-1/topics/{case['topic']}"]


def _posted(body: bytes) -> Request:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "query_string": b""}
    return Request(scope, receive)


@cases("readings")
async def test_a_counted_reading_admits_the_expected_number_of_requests(case: Case) -> None:
    given = sources(refresh_seconds=3_600)
    params = {"metric": "m", "admission": "counted", "max_count_per_pod": case["capacity"]}
    with running_exporter() as exporter:
        exporter.set("m", float(case["value"]))
        async with started("endpoint-scrape", {"url": exporter.url, **params}, given) as built:
            assert (built.budget() > 0) is (case["admitted"] > 0)
            verdicts = [await built.admit(request()) for _ in range(case["capacity"] + 1)]
            assert built.budget() == 0
    await given.http.aclose()
    assert sum(isinstance(verdict, Go) for verdict in verdicts) == case["admitted"]


@cases("gates")
async def test_a_gate_starts_or_names_the_parameter_that_it_refuses(store: Redis, case: Case) -> None:
    given = sources(stores=lambda _address: RedisGateStore(store))
    expected = pytest.raises(InvalidSetting, match=case["refused"]) if case["refused"] else contextlib.nullcontext()
    with expected:
        gate(case["gate_type"], case["gate_params"], given)
    await given.http.aclose()


@cases("router_metrics")
def test_a_router_metric_is_read_by_its_new_name_else_by_its_old_one(case: Case) -> None:
    query = budget_queries(PrometheusBudgetParameters(pool="p"))[case["query"]]
    assert 0 <= query.find(case["new"]) < query.find(case["old"])
    assert " or " in query[query.find(case["new"]) : query.find(case["old"])]


@cases("metrics")
def test_a_metric_has_the_references_labels(case: Case) -> None:
    families = vars(Families(CollectorRegistry())).values()
    found = {next(iter(each.describe())).name: each for each in families if isinstance(each, Gauge)}
    gauge = found[case["metric"]]
    if case["labels"]:
        gauge = gauge.labels(**dict.fromkeys(case["labels"], "x"))  # refuses any other set of labels
    gauge.set(1)
    [sample] = next(iter(found[case["metric"]].collect())).samples
    assert sorted(sample.labels) == sorted(case["labels"])


@cases("read_results")
async def test_a_reader_gets_the_payload_or_the_place_where_it_is(store: Redis, valkey: Valkey, case: Case) -> None:
    await store.set("result-payload:a:1", "stored")
    await store.lpush("results", case["result"])
    async with (
        AsyncClient.for_redis(valkey.url, ClientOptions(results="results"), access=LONG_LIMIT) as client,
        client.results(limit=1) as stream,
    ):
        result = (await anext(stream)).result
    assert {name: getattr(result, name) for name in case["fields"]} == case["fields"]
    assert bool(result.stored_elsewhere) is case["is_elsewhere"]


@cases("idempotency")
async def test_a_second_submission_under_a_key_is_recorded_new_or_a_conflict(
    store: Redis, valkey: Valkey, case: Case
) -> None:
    def fields(name: str) -> dict[str, Any]:
        return {"deadline": DEADLINE, "idempotency_key": "k", **case[name]}

    async with AsyncClient.for_redis(valkey.url, ClientOptions(queue="q"), access=LONG_LIMIT) as client:
        first = await client.submit(**fields("first"))
        try:
            second = await client.submit(**fields("second"))
            outcome = "new" if second.is_new else "recorded"
            assert second.is_new or second.token == first.token
        except IdempotencyConflict:
            outcome = "conflict"
    assert outcome == case["outcome"]
    assert await store.zcard("q") == (2 if outcome == "new" else 1)


@cases("changes")
def test_every_change_of_the_reference_has_a_vector_or_a_file(case: Case) -> None:
    for named in case["vectors"]:
        file, _, beginning = named.partition(": ")
        found = json.loads((VECTORS / f"{file}.json").read_text())
        assert [each for each in found if str(each["name"]).startswith(beginning)], named
    for file in case["files"]:
        assert (FILES / f"{file}.json").exists(), file
    assert case["vectors"] or case["files"] or case["not_served"]


def test_unsupported_transports_are_named_in_the_guide_and_refused() -> None:
    assert "`sql` are not served" in GUIDE.read_text()
    assert "sql-quota" not in GATE_KINDS
