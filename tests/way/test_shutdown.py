"""A request in flight survives the SIGTERM of its poller or handler."""

from __future__ import annotations

import signal
from pathlib import Path

import httpx
import msgspec
import redis

from handlers.demo.stack import Stack, StackOptions
from tests.waiting import wait_until

QUEUE, RESULTS = "request-sortedset", "result-list"
SLOW = ("--time-to-first-token", "3")


def start(grace_seconds: str, **more: str) -> Stack:
    variables = {
        "SHUTDOWN_GRACE_SECONDS": grace_seconds,
        "LEASE_SECONDS": "5",
        "HEARTBEAT_SECONDS": "1",
        **more,
    }
    return Stack(StackOptions(has_pubsub=False, gateway_arguments=SLOW, variables=variables))


def runs_at_the_gateway(stack: Stack) -> bool:
    """Whether it runs at the gateway; a claimed request may still be on its way there."""
    return bool(httpx.get(f"{stack.gateway_url}/simulate/state", timeout=60).json()["running"] == 1)


def queue_one(stack: Stack, store: redis.Redis) -> None:
    store.zadd(QUEUE, {'{"id":"slow","payload":{},"deadline":1999999999}': 1_999_999_999})
    wait_until(lambda: runs_at_the_gateway(stack), what="the request at the gateway")


def test_a_request_in_flight_survives_the_end_of_handler_and_poller() -> None:
    with start("60") as stack:
        store = redis.Redis.from_url(stack.redis_url)
        queue_one(stack, store)
        handler, poller = stack.children["dispatch"].process, stack.children["poller"].process

        handler.send_signal(signal.SIGTERM)
        poller.send_signal(signal.SIGTERM)

        assert handler.wait(60) == 0
        assert poller.wait(60) == 0
        (text,) = store.lrange(RESULTS, 0, -1)
        assert msgspec.json.decode(text)["status_code"] == 200
        assert store.hlen(f"{QUEUE}:claimed") == 0
        store.close()


def test_requests_that_outlast_the_grace_period_are_handed_back_at_once() -> None:
    with start("0.5") as stack:
        store = redis.Redis.from_url(stack.redis_url)
        queue_one(stack, store)
        poller = stack.children["poller"].process

        poller.send_signal(signal.SIGTERM)

        assert poller.wait(60) == 0
        # Returned at once, not left to its lease: it is pending as soon as the poller has ended.
        assert store.zcard(QUEUE) == 1
        assert store.hlen(f"{QUEUE}:claimed") == 0
        store.close()


def test_a_stopping_poller_returns_requests_that_wait_at_a_gate_at_once(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    gate = "gate_type: local-max-concurrency, gate_params: {limit: 1, gating_mode: blocking}"
    config.write_text(f"queues: [{{queue_name: {QUEUE}}}]\npools: [{{id: default, workers: 4, {gate}}}]")
    with start("60", CONFIG_FILE=str(config)) as stack:
        store = redis.Redis.from_url(stack.redis_url)
        queue_one(stack, store)
        store.zadd(QUEUE, {'{"id":"waits","payload":{},"deadline":1999999999}': 1_999_999_999})
        wait_until(lambda: store.hlen(f"{QUEUE}:claimed") == 2, what="the second claim")
        poller = stack.children["poller"].process

        poller.send_signal(signal.SIGTERM)

        assert poller.wait(60) == 0
        assert store.llen(RESULTS) == 1, "the one that had been sent"
        assert store.zcard(QUEUE) == 1
        store.close()
