"""One run of faults over real processes: nothing lost, one result each, no key left.

The verdict is of independent witnesses: what the producer queued, what the gateway saw, what came out.
"""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from redis import Redis
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError as NoConnection
from redis.retry import Retry

from tests.chaos.fleet import Fleet
from tests.waiting import wait_until

BETWEEN_SECONDS = 0.2
STALL_SECONDS = 2.2
"""Longer than a lease: the stalled owner wakes to find its requests with another."""


def _member(request_id: str, deadline: int) -> bytes:
    payload = {"model": "m", "prompt": "Hi", "max_tokens": 1, "user": request_id}
    return json.dumps({"id": request_id, "payload": payload, "deadline": deadline}).encode()


def _inflict(fleet: Fleet, fault: str, chance: random.Random) -> None:
    match fault:
        case "kill":
            fleet.end_poller(signal.SIGKILL, chance)
        case "terminate":
            fleet.end_poller(signal.SIGTERM, chance)
        case "valkey":
            fleet.kill_valkey()
        case _:
            stalled = fleet.stall_poller(chance)
            _let_pass(STALL_SECONDS)  # the stall itself: nothing else tells its end
            stalled.process.send_signal(signal.SIGCONT)


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of what; the seed orders it."""

    requests: int
    kills: int
    terminations: int
    stalls: int
    valkey_kills: int

    def faults(self, chance: random.Random) -> list[str]:
        """All faults, in an order of chance."""
        faults = ["kill"] * self.kills + ["terminate"] * self.terminations
        faults += ["stall"] * self.stalls + ["valkey"] * self.valkey_kills
        chance.shuffle(faults)
        return faults


def run(folder: Path, seed: int, plan: Plan) -> str:
    """Run the plan and check the whole history; returns what happened in a line. Raises `AssertionError`."""
    chance = random.Random(seed)
    faults = plan.faults(chance)
    ids = [f"r-{seed}-{n}" for n in range(plan.requests)]
    with Fleet(folder, pollers=3) as fleet:
        redis = Redis.from_url(
            fleet.redis_url, retry=Retry(ConstantBackoff(0.1), 50), retry_on_error=[NoConnection]
        )
        deadline = int(time.time()) + 86_400
        for at, fault in enumerate(faults):
            some = ids[at :: len(faults)]
            # Queued again after a lost reply: the same member, so the same request.
            redis.zadd("request-sortedset", {_member(request_id, deadline): deadline for request_id in some})
            wait_until(lambda: redis.hlen("request-sortedset:claimed") > 16, 30, "two pollers at work")
            _let_pass(BETWEEN_SECONDS * chance.random())  # faults meet requests at any point of their way
            _inflict(fleet, fault, chance)
        _wait_until_drained(redis, plan.requests)
        results = [json.loads(text) for text in cast(list[bytes], redis.lrange("result-list", 0, -1))]
        left = {
            key.decode() for key in redis.scan_iter() if b":settled:" not in key
        }  # those expire by themselves
        redis.close()
    answered = fleet.answered()
    _judge(ids, results, answered)
    assert left == {"result-list"}, "keys of finished requests"
    executions = fleet.executions()
    again = executions - len(answered)  # begun again: their owner died, or lost its lease
    assert again > 0, "no fault met a request in flight: the run proves nothing"
    return (
        f"seed {seed}: {len(faults)} faults, {len(results)} results, {executions} executions, {again} again"
    )


def _let_pass(seconds: float) -> None:
    """Time as a part of the fault itself: how long a stall lasts, where on its way a request is met."""
    end = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= end, seconds + 30, "the time of a fault")


def _wait_until_drained(redis: Redis, count: int) -> None:
    held = ("request-sortedset", "request-sortedset:claimed", "retry-sortedset")
    wait_until(lambda: redis.llen("result-list") >= count, 60 + count / 50, "all results")
    wait_until(lambda: not redis.exists(*held), 20, "nothing is held")


def _judge(ids: list[str], results: list[dict[str, Any]], answered: dict[str, int]) -> None:
    assert Counter(result["id"] for result in results) == Counter(ids), "one result for each, no other"
    succeeded = {result["id"] for result in results if result.get("status_code") == 200}
    assert succeeded <= set(answered), "no success that the gateway did not see"
    assert set(answered) <= set(ids)
