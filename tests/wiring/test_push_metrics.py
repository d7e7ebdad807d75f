"""The push door's page: its subscriptions, pools and gates by the names of the settings, held deliveries included."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import msgspec
import pytest

from handlers.contract.request import Request
from handlers.forward.forward import NO_OPTIONS, AttemptOptions
from handlers.forward.middleware.account import counted_attempts, counted_calls
from handlers.forward.outcome import Outcome, Retry
from handlers.settings.settings import Settings, load_settings
from handlers.telemetry.metrics import DoorMetrics, Metrics
from handlers.wiring.handler import Handler
from tests.servers.pubsub_broker import running_broker
from tests.telemetry.exposition import page_of
from tests.waiting import wait_until_async

SUBSCRIPTION = {"queue_id": "chat", "queue_name": "chat-sub", "pool_name": "big"}


@pytest.fixture
def push_settings(tmp_path: Path) -> Settings:
    """One subscription with a gate, in a pool with another."""
    file = tmp_path / "config.json"
    file.write_text(
        json.dumps(
            {
                "topics": [
                    {
                        "subscriber_id": "chat-sub",
                        "id": "chat",
                        "worker_pool_id": "big",
                        "gate_type": "local-max-concurrency",
                        "gate_params": {"limit": "3"},
                    }
                ],
                "pools": [{"id": "big", "workers": 7, "gate_type": "aimd"}],
            }
        )
    )
    variables = {"PROJECT_ID": "p-roject", "RESULT_TOPIC_ID": "results", "PUSH_AUTH": "none"}
    return load_settings({"CONFIG_FILE": str(file), "METRICS_TOKEN": "a-token-for-prometheus", **variables})


async def test_subscriptions_pools_and_gates_are_shown_before_the_first_push(push_settings: Settings) -> None:
    async with running_broker() as broker:
        env = msgspec.structs.replace(push_settings.env, pubsub_emulator_host=broker.host)
        handler = Handler(msgspec.structs.replace(push_settings, env=env), "pubsub_push")
        assert await handler.start() == []
        assert handler.shared.metrics is not None
        page = page_of(handler.shared.metrics.metrics)
        assert page.value("request_total", **SUBSCRIPTION) == 0
        assert page.value("gate_closed", **SUBSCRIPTION, gate_type="local-max-concurrency") == 0
        assert page.value("pool_worker_limit", pool_name="big") == 7
        assert page.value("gate_waiting_requests", pool_name="big") == 0
        assert page.value("connections_in_use", peer="pubsub") == 0
        assert page.value("ready") == 1
        await handler.aclose()


async def test_a_held_delivery_is_shown_while_it_waits() -> None:
    metrics = Metrics()
    queue, opened = metrics.of_queue("s", "s", "default"), asyncio.Event()
    labels = {"queue_id": "s", "queue_name": "s", "pool_name": "default"}

    async def send(_request: Request, _limits: AttemptOptions) -> Outcome:
        return Retry(1.0, "rejected")

    calls = counted_calls(send, lambda _: queue)

    async def gate(request: Request, limits: AttemptOptions) -> Outcome:
        await opened.wait()
        return await calls(request, limits)

    forward = counted_attempts(gate, lambda _: queue, DoorMetrics(metrics, "pubsub_push"))
    work = asyncio.ensure_future(
        forward(Request(id="a", queue="s", deadline=time.time() + 60, payload=b"{}"), NO_OPTIONS)
    )
    await wait_until_async(lambda: page_of(metrics).value("queue_depth", **labels) == 1, "it is held")
    opened.set()
    await work
    assert page_of(metrics).value("queue_depth", **labels) == 0
    assert page_of(metrics).value("dispatched_requests_total", **labels) == 1
