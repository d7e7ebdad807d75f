"""The queue's scripts against a plain model, in any order hypothesis finds: I1, I2, I7, I8, I14, I18.

Every fault is in the model as a step: a dead or stalled owner is a lease that ends, its late words are renewals
and settlements of claims that no longer hold.
"""

from __future__ import annotations

import asyncio
import uuid

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from redis.asyncio import Redis

from handlers.demo.valkey import Valkey
from tests.redis_store.queue.queue_model import STEPS, Walk
from tests.redis_store.queue.queueing import Bench

PICKS = st.integers(0, 23)


class QueueMachine(RuleBasedStateMachine):
    """One run on an empty server; remaining requests are drained at its end."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.Runner()
        self._redis = Redis.from_url(self.url, socket_timeout=60, socket_connect_timeout=60)
        self._walk = self._loop.run(self._begin())

    async def _begin(self) -> Walk:
        await self._redis.flushall()
        return Walk(Bench(self._redis, uuid.uuid4().hex))

    @rule(pick=PICKS)
    def submit(self, pick: int) -> None:
        self._loop.run(self._walk.submit(pick))

    @rule(pick=PICKS)
    def claim(self, pick: int) -> None:
        self._loop.run(self._walk.claim(pick))

    @rule(name=st.sampled_from(["renew", "ack", "nack", "release"]), pick=PICKS)
    def settle(self, name: str, pick: int) -> None:
        self._loop.run(STEPS[name](self._walk, pick))

    @rule(name=st.sampled_from(["expire", "fall_due", "lose_index_entry", "restart"]), pick=PICKS)
    def pass_time(self, name: str, pick: int) -> None:
        self._loop.run(STEPS[name](self._walk, pick))

    @rule(name=st.sampled_from(["cancel", "recall", "recall_retries", "scan_held"]), pick=PICKS)
    def take_back(self, name: str, pick: int) -> None:
        self._loop.run(STEPS[name](self._walk, pick))

    @rule(name=st.sampled_from(["reclaim", "promote"]), pick=PICKS)
    def scan(self, name: str, pick: int) -> None:
        self._loop.run(STEPS[name](self._walk, pick))

    @invariant()
    def server_and_model_hold_the_same(self) -> None:
        self._loop.run(self._walk.check())

    def teardown(self) -> None:
        try:
            self._loop.run(self._walk.drain())
        finally:
            self._loop.run(self._redis.aclose())
            self._loop.close()


@pytest.mark.timeout(600)  # thousands of calls, each of which may wait for a core
def test_every_request_is_answered_once_for_any_order_of_operations(each_server: Valkey) -> None:
    class Machine(QueueMachine):
        url = each_server.url

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=30,
            stateful_step_count=60,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
