"""One run of faults over real processes, and its verdict."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterable
from pathlib import Path
from typing import cast

from redis import Redis
from redis.backoff import ConstantBackoff
from redis.exceptions import BusyLoadingError, ReadOnlyError
from redis.exceptions import ConnectionError as NoConnection
from redis.retry import Retry

from tests.chaos.faults import Chaos, Inflicted, Plan
from tests.chaos.fleet import Fleet
from tests.chaos.history import (
    Execution,
    Verdict,
    executed_again,
    judge_published,
    judge_results,
    judge_spacing,
    read_executions,
    redeliveries,
    summary,
)
from tests.chaos.pushing import Pushing
from tests.waiting import elapse, wait_until

QUEUE, RETRIES, RESULTS = "request-sortedset", "retry-sortedset", "result-list"
PUSHED_SHARE = 0.1
SHORT_DEADLINE_SHARE = 0.05
SHORT_SECONDS = 6
BUSY = 24
"""Requests in flight that a fault waits for: it must meet some."""


def _body(request_id: str, deadline: float) -> bytes:
    payload = {"model": "m", "prompt": "Hi", "max_tokens": 1, "user": request_id}
    return json.dumps({"id": request_id, "payload": payload, "deadline": deadline}).encode()


def run(folder: Path, seed: int, plan: Plan) -> Verdict:
    """Run the plan and check the whole history. Raises `AssertionError` where something does not fit."""
    chance, began = random.Random(seed), time.time()
    faults = plan.faults(chance)
    pushed = {f"p-{seed}-{n}": began + 86_400 for n in range(int(plan.requests * PUSHED_SHARE))}
    names = [f"r-{seed}-{n}" for n in range(plan.requests - len(pushed))]
    with (
        Pushing(seed) as pushing,
        Fleet(folder, pushing.host, pollers=3, handlers=2) as fleet,
        _client(fleet.redis_url) as redis,
    ):
        chaos = Chaos(fleet, chance)
        pushing.push(fleet.push_url, [(name, _body(name, deadline)) for name, deadline in pushed.items()])
        queued = _inflict_all(redis, chaos, faults, names, chance)
        chaos.end()
        fleet.gateway("faults")
        _wait_until_drained(redis, len(names))
        pushing.wait(120)
        results = [json.loads(text) for text in cast(list[bytes], redis.lrange(RESULTS, 0, -1))]
        left = {key.decode() for key in redis.scan_iter(count=1_000) if not _is_passing(key)}
        published = list(pushing.results)
        fleet.scale_to_zero()
        refused = fleet.refused
    executions = read_executions(fleet.witness)
    assert left == {RESULTS}, "keys of finished requests"
    assert refused > 0, "no stale word was refused: the run proves nothing"
    judge_results(queued, results, executions)
    doubles = judge_published(set(pushed), published)
    assert doubles <= chaos.done.in_flight
    _judge(queued, set(pushed), executions, chaos.done)
    return Verdict(
        seed,
        dict(chaos.done.counts()),
        plan.requests,
        len(executions),
        executed_again(executions),
        chaos.done.in_flight,
        doubles,
        refused,
        *summary(redeliveries(executions, queued, chaos.done.killed_pollers_at)),
        time.time() - began,
    )


def _judge(queued: Iterable[str], pushed: set[str], executions: list[Execution], done: Inflicted) -> None:
    judge_spacing(executions, done)
    assert {one.key for one in executions} <= {*queued, *pushed}, "nobody else asked the gateway"
    again = executed_again(executions)
    assert 0 < again <= done.in_flight, "some met a fault, and no more than were in flight at one"


def _inflict_all(
    redis: Redis, chaos: Chaos, faults: list[str], names: list[str], chance: random.Random
) -> dict[str, float]:
    """All faults, evenly over the requests; returns what was queued, with its deadline."""
    queued: dict[str, float] = {}
    for at, fault in enumerate(faults):
        some = {name: _deadline(chance) for name in names[at :: len(faults)]}
        # Queued again after a lost reply: the same member, so the same request.
        redis.zadd(QUEUE, {_body(name, deadline): deadline for name, deadline in some.items()})
        queued |= some
        _wait_until_busy(redis)
        elapse(0.1 * chance.random(), "faults meet requests at any point of their way")
        chaos.inflict(fault)
    return queued


def _deadline(chance: random.Random) -> float:
    seconds = SHORT_SECONDS if chance.random() < SHORT_DEADLINE_SHARE else 86_400
    return float(int(time.time()) + seconds)


def _wait_until_busy(redis: Redis) -> None:
    """Some are in flight, or nothing is left that could be."""
    wait_until(lambda: redis.hlen(f"{QUEUE}:claimed") > BUSY or not redis.zcard(QUEUE), 60, "pollers at work")


def _client(url: str) -> Redis:
    failures: list[type[Exception]] = [NoConnection, BusyLoadingError, ReadOnlyError]
    return Redis.from_url(url, retry=Retry(ConstantBackoff(0.1), 100), retry_on_error=failures)


def _is_passing(key: bytes) -> bool:
    """What expires by itself: the memory of batches, and of deliveries that were answered."""
    return b":settled:" in key or b":status:" in key or key.startswith(b"delivery")


def _wait_until_drained(redis: Redis, count: int) -> None:
    held = (QUEUE, f"{QUEUE}:claimed", RETRIES)
    wait_until(lambda: redis.llen(RESULTS) >= count, 90 + count / 50, "all results")
    wait_until(lambda: not redis.exists(*held), 30, "nothing is held")
