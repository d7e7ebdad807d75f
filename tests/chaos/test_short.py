"""A short run of faults over real processes: nothing lost, one result each, no key left.

The verdict is of independent witnesses: what the producer queued, what the gateway saw, what came out.
"""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import cast

import pytest
from redis import Redis
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError as NoConnection
from redis.retry import Retry

from tests.chaos.fleet import Fleet
from tests.waiting import wait_until

REQUESTS = 1_200
FAULTS = ["kill", "stall", "kill", "terminate", "kill", "valkey", "stall", "kill"]
BETWEEN_SECONDS = 0.7
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
            time.sleep(STALL_SECONDS)  # the stall itself: nothing else tells its end
            stalled.process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("seed", [7])
def test_i1_i2_whatever_dies_each_request_has_one_result(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    deadline = int(time.time()) + 600
    ids = [f"r-{seed}-{n}" for n in range(REQUESTS)]
    with Fleet(tmp_path, pollers=3) as fleet:
        redis = Redis.from_url(
            fleet.redis_url, retry=Retry(ConstantBackoff(0.1), 50), retry_on_error=[NoConnection]
        )
        share = REQUESTS // len(FAULTS)
        for at, fault in enumerate(FAULTS):
            some = ids[at * share : (at + 1) * share]
            # Queued again after a lost reply: the same member, so the same request.
            redis.zadd("request-sortedset", {_member(request_id, deadline): deadline for request_id in some})
            time.sleep(BETWEEN_SECONDS * chance.random())  # faults meet requests at any point of their way
            _inflict(fleet, fault, chance)
        wait_until(lambda: redis.llen("result-list") >= REQUESTS, 60, "all results")
        wait_until(
            lambda: not redis.exists("request-sortedset", "request-sortedset:claimed", "retry-sortedset"),
            20,
            "nothing is held",
        )
        results = [json.loads(text) for text in cast(list[bytes], redis.lrange("result-list", 0, -1))]
        left = {key.decode() for key in redis.scan_iter()}
        redis.close()
    answered = fleet.answered()
    assert Counter(result["id"] for result in results) == Counter(ids), "one result for each, no other"
    succeeded = {result["id"] for result in results if result.get("status_code") == 200}
    assert succeeded <= set(answered), "no success that the gateway did not see"
    assert set(answered) <= set(ids)
    assert left == {"result-list"}
    again = sum(answered.values()) - len(answered)
    print(f"seed {seed}: {len(FAULTS)} faults, {sum(answered.values())} executions, {again} of them again")
    assert again > 0, "no fault met a request in flight: the run proves nothing"
