"""A request in flight survives the SIGTERM of its poller or handler."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import redis

from handlers.demo.stack import Stack, StackOptions
from tests.servers.forked import ForkedChild
from tests.waiting import wait_until
from tests.way.test_reload import full_gateway, state_of

QUEUE, RESULTS = "request-sortedset", "result-list"


@contextlib.contextmanager
def running(grace_seconds: str, **more: str) -> Iterator[tuple[Stack, redis.Redis]]:
    variables = {"SHUTDOWN_GRACE_SECONDS": grace_seconds, "LEASE_SECONDS": "300", "HEARTBEAT_SECONDS": "1", **more}
    tokens = ("--time-per-token", "0.02")  # so that the request that fills the gateway does not end
    options = StackOptions(child=ForkedChild, has_pubsub=False, gateway_arguments=tokens, variables=variables)
    with Stack(options) as stack, redis.Redis.from_url(stack.redis_url, socket_timeout=60) as store:
        yield stack, store


def queue_one(stack: Stack, store: redis.Redis) -> None:
    """Queue a request; returns when it waits at the full gateway, since a claimed one may be on its way there."""
    store.zadd(QUEUE, {'{"id":"slow","payload":{},"deadline":1999999999}': 1_999_999_999})
    wait_until(lambda: state_of(stack)["waiting"] == 1, what="the request at the gateway")


def test_a_request_in_flight_survives_the_end_of_handler_and_poller() -> None:
    with running("60") as (stack, store):
        handler, poller = stack.children["dispatch"], stack.children["poller"]
        with full_gateway(stack):
            queue_one(stack, store)
            for child in (handler, poller):
                child.process.send_signal(signal.SIGTERM)
            poller.wait_for(lambda output: output if '"draining"' in output else None)

        assert handler.process.wait(60) == 0
        assert poller.process.wait(60) == 0
        (text,) = store.lrange(RESULTS, 0, -1)
        assert msgspec.json.decode(text)["status_code"] == 200
        assert store.hlen(f"{QUEUE}:claimed") == 0


def test_requests_that_outlast_the_grace_period_are_handed_back_at_once() -> None:
    with running("0.5") as (stack, store), full_gateway(stack):
        queue_one(stack, store)
        poller = stack.children["poller"].process

        poller.send_signal(signal.SIGTERM)

        assert poller.wait(60) == 0
        # Returned at once, not left to its lease: it is pending as soon as the poller has ended.
        assert store.zcard(QUEUE) == 1
        assert store.hlen(f"{QUEUE}:claimed") == 0


def test_a_stopping_poller_returns_requests_that_wait_at_a_gate_at_once(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    gate = "gate_type: local-max-concurrency, gate_params: {limit: 1, gating_mode: blocking}"
    config.write_text(f"queues: [{{queue_name: {QUEUE}}}]\npools: [{{id: default, workers: 4, {gate}}}]")
    with running("60", CONFIG_FILE=str(config)) as (stack, store):
        poller = stack.children["poller"].process
        with full_gateway(stack):
            queue_one(stack, store)
            store.zadd(QUEUE, {'{"id":"waits","payload":{},"deadline":1999999999}': 1_999_999_999})
            wait_until(lambda: store.hlen(f"{QUEUE}:claimed") == 2, what="the second claim")

            poller.send_signal(signal.SIGTERM)

            wait_until(lambda: store.zcard(QUEUE) == 1, "the one that was not sent to be returned")
        assert poller.wait(60) == 0
        assert store.llen(RESULTS) == 1, "the one that had been sent"
        assert store.zcard(QUEUE) == 1
