"""Every gate, built from settings, in the poller and at the push door: a closed one admits nothing, an open one all."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
from redis.asyncio import Redis

from handlers.contract.request import Request
from handlers.contract.result import Result
from handlers.forward.forward import NO_OPTIONS, AttemptOptions
from handlers.forward.gateway import Gateway as HttpGateway
from handlers.forward.gateway import GatewayResponse
from handlers.forward.outcome import Answered, Outcome, Retry
from handlers.gates.gate import Feedback
from handlers.gates.registry import GATE_KINDS
from handlers.settings.settings import Settings, load_settings
from handlers.telemetry.logs import get_logger
from handlers.transport.transport import TransportOptions
from handlers.wiring.forward_stack import (
    Parts,
    event_stack,
    held_events,
    held_pushes,
    shared_by_handlers,
)
from handlers.wiring.poller import PollerApp
from tests.bench.measuring import gateway
from tests.gates.exporter import Exporter, running_exporter
from tests.gates.redis_server import RedisServer, running_redis
from tests.servers.prometheus import running_prometheus
from tests.waiting import elapse_async, wait_until_async

SATURATION = "llm_d_epp_flow_control_pool_saturation"
QUEUE_SIZE = "llm_d_epp_flow_control_queue_size"
QUEUE = "request-sortedset"
_CLOSED_SECONDS = 0.25


@dataclass
class World:
    """The source of the gates, which a test closes and opens."""

    redis: Redis
    address: str
    exporter: Exporter
    prometheus_url: str

    async def saturation(self, value: float) -> None:
        self.exporter.set(SATURATION, value, inference_pool="p")

    async def fill(self, key: str, *, is_full: bool) -> None:
        """Somebody else's use of a concurrency quota."""
        await (self.redis.set(key, 1, ex=60) if is_full else self.redis.delete(key))

    async def lease(self, *, is_valid: bool) -> None:
        now_ms = int(time.time() * 1_000)
        lease = {
            "api_version": "llm-d.ai/v1alpha1",
            "pool_id": "p",
            "max_admission_rps": "100",
            "valid_until_unix_ms": str(now_ms + 60_000 if is_valid else now_ms - 1),
            "decision_id": "d",
        }
        for name, value in lease.items():
            await self.redis.hset("rate", name, value)


@dataclass(frozen=True)
class Case:
    """A gate's settings; `turn` opens (True) or closes (False) its source. Without a source it is open."""

    params: Callable[[World], Mapping[str, Any]]
    turn: Callable[[World, bool], Any] | None = None


async def _saturation(world: World, is_open: bool) -> None:
    await world.saturation(0.0 if is_open else 1.0)


async def _queue_size(world: World, is_open: bool) -> None:
    world.exporter.set(QUEUE_SIZE, 0.0 if is_open else 4.0, inference_pool="p")


async def _lease(world: World, is_open: bool) -> None:
    await world.lease(is_valid=is_open)


async def _budget(world: World, is_open: bool) -> None:
    await world.redis.set("dispatch-gate-budget", "1" if is_open else "0")


async def _quota(world: World, is_open: bool) -> None:
    await world.fill("quota:userid:u", is_full=not is_open)


def _scrape(world: World) -> dict[str, Any]:
    return {"url": world.exporter.url, "metric": SATURATION}


CASES: Mapping[str, Case] = {
    "constant": Case(lambda world: {}),
    "redis": Case(lambda world: {"address": world.address}, _budget),
    "prometheus-saturation": Case(lambda world: {"pool": "p", "fallback": 1}, _saturation),
    "prometheus-budget": Case(lambda world: {"pool": "p", "max_concurrency": 4}, _queue_size),
    "prometheus-query": Case(lambda world: {"query": f"1 - max({SATURATION})"}, _saturation),
    "endpoint-scrape": Case(_scrape, _saturation),
    "local-max-concurrency": Case(lambda world: {"limit": 1}),
    "redis-quota": Case(lambda world: {"address": world.address, "limit": 1, "mode": "concurrency"}, _quota),
    "redis-leased-rate": Case(lambda world: {"address": world.address, "control_key": "rate", "pool": "p"}, _lease),
    "tier-priority-admission": Case(
        lambda world: {"saturation_gate": "endpoint-scrape", "saturation_gate_params": _scrape(world)},
        _saturation,
    ),
    "composite": Case(
        lambda world: {
            "gates": [
                {"gate_type": "local-max-concurrency", "gate_params": {"limit": 2}},
                {"gate_type": "endpoint-scrape", "gate_params": _scrape(world)},
            ]
        },
        _saturation,
    ),
    "wait-on-refuse": Case(
        lambda world: {"gate": {"gate_type": "endpoint-scrape", "gate_params": _scrape(world)}}, _saturation
    ),
    "aimd": Case(lambda world: {"max_window": 4}),
}


@pytest.fixture(scope="module")
def exporter() -> Iterator[Exporter]:
    with running_exporter() as found:
        found.set(SATURATION, 1.0, inference_pool="p")
        found.set(QUEUE_SIZE, 0.0, inference_pool="p")
        found.set("llm_d_epp_ready_endpoints", 1.0, name="p")
        yield found


@pytest.fixture(scope="module")
def prometheus_url(exporter: Exporter) -> Iterator[str]:
    with running_prometheus([exporter.address]) as url:
        yield url


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with running_redis() as found:
        yield found


@pytest.fixture
async def world(server: RedisServer, exporter: Exporter, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """With a Prometheus only for the gates that query it."""
    gate_type = request.node.callspec.params["gate_type"] if hasattr(request.node, "callspec") else ""
    has_prometheus = gate_type.startswith("prometheus")
    # First: it skips the test where there is no Prometheus, and nothing may be open then.
    prometheus_url = request.getfixturevalue("prometheus_url") if has_prometheus else ""
    redis = Redis.from_url(f"redis://{server.address}", socket_timeout=60)
    await redis.flushall()
    yield World(redis, server.address, exporter, prometheus_url)
    await redis.aclose()


@pytest.fixture(scope="module")
def gateway_url() -> Iterator[str]:
    with gateway() as up:
        yield up.url


def settings_of(world: World, folder: Path, content: Mapping[str, Any], gateway_url: str) -> Settings:
    path = folder / "config.json"
    path.write_text(json.dumps(content))
    return load_settings(
        {
            "CONFIG_FILE": str(path),
            "IGW_BASE_URL": gateway_url,
            "REDIS_URL": f"redis://{world.address}",
            "PROMETHEUS_URL": world.prometheus_url,
            "GATE_REFRESH_SECONDS": "0.05",
            "METRICS_PORT": "0",
            "PROJECT_ID": "p",
            "RESULT_TOPIC_ID": "results",
        }
    )


async def turned(world: World, case: Case, gate_type: str, *, is_open: bool) -> None:
    if case.turn is None:
        return
    await case.turn(world, is_open)
    if gate_type.startswith("prometheus") and not is_open:
        name, closed = (QUEUE_SIZE, 4.0) if gate_type == "prometheus-budget" else (SATURATION, 1.0)
        await wait_until_async(lambda: scraped(world, name) == closed, f"Prometheus to have scraped {name}")


def scraped(world: World, name: str) -> float | None:
    """Prometheus' current value of a metric."""
    query = urlencode({"query": f"max({name})"})
    with urlopen(f"{world.prometheus_url}/api/v1/query?{query}", timeout=60) as answer:
        rows = json.load(answer)["data"]["result"]
    return float(rows[0]["value"][1]) if rows else None


def test_every_gate_has_a_case() -> None:
    assert set(CASES) == set(GATE_KINDS)


@contextlib.asynccontextmanager
async def polling(settings: Settings) -> AsyncIterator[None]:
    app = PollerApp(settings)
    running = asyncio.create_task(app.run())
    try:
        yield
    finally:
        app.poller.stop()
        await running


@pytest.mark.parametrize("gate_type", sorted(CASES))
async def test_a_gate_of_a_pool_and_of_a_queue_in_the_poller(
    gate_type: str, world: World, tmp_path: Path, gateway_url: str
) -> None:
    for owner in ("pools", "queues"):
        await world.redis.flushall()
        await a_gate_in_the_poller(gate_type, owner, world, tmp_path, gateway_url)


async def a_gate_in_the_poller(gate_type: str, owner: str, world: World, tmp_path: Path, gateway_url: str) -> None:
    case = CASES[gate_type]
    gate = {"gate_type": gate_type, "gate_params": case.params(world)}
    pool = {"id": "shared", "workers": 4, **(gate if owner == "pools" else {})}
    labels = {"classification": "overflow", "tier": "async"}
    queue = {"queue_name": QUEUE, "worker_pool_id": "shared", "labels": labels}
    queue |= gate if owner == "queues" else {}
    settings = settings_of(world, tmp_path, {"queues": [queue], "pools": [pool]}, gateway_url)
    deadline = int(time.time()) + 600
    body = {"id": "r", "deadline": deadline, "metadata": {"userid": "u"}, "payload": {"prompt": "p"}}
    await world.redis.zadd(QUEUE, {json.dumps(body): deadline})
    await turned(world, case, gate_type, is_open=False)
    async with polling(settings):
        if case.turn is not None:
            await elapse_async(_CLOSED_SECONDS, "nothing may pass meanwhile")
            assert await world.redis.llen("result-list") == 0, owner
            await turned(world, case, gate_type, is_open=True)

        async def is_answered() -> bool:
            return await world.redis.llen("result-list") == 1

        await wait_until_async(is_answered, f"the result, once the gate of {owner} is open")
    assert b'"status_code":200' in (await world.redis.lrange("result-list", 0, 0))[0]


@dataclass
class Gateway:
    """In place of the gateway: records requests that passed the gates."""

    seen: list[str] = field(default_factory=list)

    async def forward(self, request: Request, _limits: AttemptOptions) -> Outcome:
        self.seen.append(request.id)
        return Answered(Result(request.id, status_code=200, payload="{}"), Feedback(200))


class AnsweringGateway(HttpGateway):
    """A gateway that answers every call."""

    async def send(self, *_call: object) -> GatewayResponse:
        return GatewayResponse(200, {}, b"{}")


def push(queue: str = "s", **more: Any) -> Request:
    labels = {"classification": "overflow", "tier": "async"}
    deadline = time.time() + 600
    name = uuid.uuid4().hex
    return Request(
        id=name,
        deadline=deadline,
        payload=b"{}",
        queue=queue,
        metadata={"userid": "u"},
        labels=labels,
        **more,
    )


@contextlib.asynccontextmanager
async def started(parts: Parts) -> AsyncIterator[None]:
    for take_effect in parts.effects:
        assert await take_effect() == []
    try:
        yield
    finally:
        await parts.shared.aclose()


def parts_of() -> Parts:
    settings, log = load_settings({"IGW_BASE_URL": "http://127.0.0.1:1"}), get_logger("test")
    return Parts(log, [], [], shared_by_handlers(settings, "pubsub_push", log, lambda: False))


@pytest.mark.parametrize("gate_type", sorted(CASES))
async def test_a_gate_of_a_pool_and_of_a_subscription_behind_the_push_door(
    gate_type: str, world: World, tmp_path: Path
) -> None:
    for owner in ("pools", "topics"):
        await world.redis.flushall()
        await a_gate_behind_the_push_door(gate_type, owner, world, tmp_path)


async def a_gate_behind_the_push_door(gate_type: str, owner: str, world: World, tmp_path: Path) -> None:
    case, behind, parts = CASES[gate_type], Gateway(), parts_of()
    gate = {"gate_type": gate_type, "gate_params": case.params(world)}
    pool = {"id": "shared", "workers": 4, **(gate if owner == "pools" else {})}
    topic = {"subscriber_id": "s", "worker_pool_id": "shared", **(gate if owner == "topics" else {})}
    settings = settings_of(world, tmp_path, {"topics": [topic], "pools": [pool]}, "http://127.0.0.1:1")
    forward = held_pushes(settings, behind.forward, parts)
    await turned(world, case, gate_type, is_open=False)
    async with started(parts):
        if case.turn is not None:
            outcome = await forward(push(), AttemptOptions(seconds=_CLOSED_SECONDS))
            assert isinstance(outcome, Retry), owner
            assert not outcome.counts_attempt, owner
            assert behind.seen == [], owner
            await turned(world, case, gate_type, is_open=True)
        assert isinstance(await forward(push(), AttemptOptions(seconds=60)), Answered), owner
    assert len(behind.seen) == 1, owner


async def test_subscriptions_of_one_pool_share_its_slots(world: World, tmp_path: Path) -> None:
    most, inside = 0, 0
    parts = parts_of()

    async def forward(request: Request, _limits: AttemptOptions) -> Outcome:
        nonlocal most, inside
        inside += 1
        most = max(most, inside)
        await elapse_async(0.02, "a request lasts")
        inside -= 1
        return Answered(Result(request.id, status_code=200, payload="{}"), Feedback(200))

    pool = {"id": "shared", "workers": 2, "gate_type": "constant"}
    topics = [{"subscriber_id": name, "worker_pool_id": "shared"} for name in "ab"]
    settings = settings_of(world, tmp_path, {"topics": topics, "pools": [pool]}, "http://127.0.0.1:1")
    held = held_pushes(settings, forward, parts)
    async with started(parts):
        await asyncio.gather(*(held(push(name), AttemptOptions(seconds=60)) for name in "ab" * 6))
    assert most == 2


async def test_events_of_other_sources_pass_the_gate_of_the_default_pool_and_the_pollers_do_not(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handlers.wiring.forward_stack.EVENT_HOLD_SECONDS", 0.2)
    parts = parts_of()
    gate = {"gate_type": "redis", "gate_params": {"address": world.address}}
    settings = settings_of(world, tmp_path, {"pools": [{"id": "default", **gate}]}, "http://127.0.0.1:1")
    await world.redis.set("dispatch-gate-budget", "0")
    parts.shared.gateway = AnsweringGateway(TransportOptions())
    forward = event_stack(settings, parts)
    async with started(parts):
        refused = await forward(push(queue=""), NO_OPTIONS)
        assert isinstance(refused, Retry)
        assert refused.reason == "gate_closed"
        assert isinstance(await forward(push(queue=QUEUE), NO_OPTIONS), Answered)
        await world.redis.set("dispatch-gate-budget", "1")

        async def is_answered() -> bool:
            return isinstance(await forward(push(queue=""), NO_OPTIONS), Answered)

        await wait_until_async(is_answered, "the gate to read its budget again")


async def test_without_a_gate_there_is_no_layer(world: World, tmp_path: Path) -> None:
    behind, parts = Gateway(), parts_of()
    content = {"topics": [{"subscriber_id": "s"}], "pools": [{"id": "default"}]}
    settings = settings_of(world, tmp_path, content, "http://127.0.0.1:1")
    assert held_pushes(settings, behind.forward, parts) == behind.forward
    assert held_events(settings, behind.forward, parts) == behind.forward
