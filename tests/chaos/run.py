"""One run of faults over real processes, and its verdict."""

from __future__ import annotations

import json
import random
import re
import time
from pathlib import Path
from typing import Any, cast

import msgspec
from redis import Redis
from redis.backoff import ConstantBackoff
from redis.exceptions import BusyLoadingError, ReadOnlyError
from redis.exceptions import ConnectionError as NoConnection
from redis.retry import Retry

from handlers.redis_store.dedup import DELIVERY_PREFIX
from tests.chaos.faults import Chaos, Plan
from tests.chaos.fleet import Fleet
from tests.chaos.history import RESULTS, History, Verdict, read_executions, verdict
from tests.chaos.pushing import Pushing
from tests.waiting import elapse, wait_until

QUEUE, RETRIES = "request-sortedset", "retry-sortedset"
PUSHED_SHARE = 0.1
SHORT_DEADLINE_SHARE = 0.05
SHORT_SECONDS = 6
BUSY = 24
"""Requests in flight that a fault waits for: it must meet some."""
_TOLD_EVERY = 100


def request_body(request_id: str, deadline: float) -> bytes:
    """As a client queues it; the gateway notes the id as the request's key."""
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
        store_client(fleet.redis_url) as redis,
    ):
        chaos = Chaos(fleet, chance)
        pushing.push(
            fleet.push_url, [(name, request_body(name, deadline)) for name, deadline in pushed.items()]
        )
        queued = _inflict_all(redis, chaos, faults, names, chance)
        chaos.end()
        fleet.gateway("faults")
        wait_until_drained(redis, len(names))
        pushing.wait(600)
        results = read_results(redis)
        left = keys_left(redis)
        published = list(pushing.results)
        fleet.scale_to_zero()
        refused = fleet.refused
    told = History(queued, sorted(pushed), results, published, sorted(left), refused, chaos.done, began)
    (folder / "history.json").write_bytes(msgspec.json.encode(told))
    return verdict(seed, told, read_executions(fleet.witness))


def _inflict_all(
    redis: Redis, chaos: Chaos, faults: list[str], names: list[str], chance: random.Random
) -> dict[str, float]:
    """All faults, evenly over the requests; returns what was queued, with its deadline."""
    queued: dict[str, float] = {}
    for at, fault in enumerate(faults):
        some = {name: _deadline(chance) for name in names[at :: len(faults)]}
        # Queued again after a lost reply: the same member, so the same request.
        redis.zadd(QUEUE, {request_body(name, deadline): deadline for name, deadline in some.items()})
        queued |= some
        _wait_until_busy(redis)
        elapse(0.1 * chance.random(), "faults meet requests at any point of their way")
        chaos.inflict(fault)
        if (at + 1) % _TOLD_EVERY == 0:
            print(f"{at + 1} of {len(faults)} faults, {redis.llen(RESULTS)} results", flush=True)
    return queued


def _deadline(chance: random.Random) -> float:
    seconds = SHORT_SECONDS if chance.random() < SHORT_DEADLINE_SHARE else 86_400
    return float(int(time.time()) + seconds)


def _wait_until_busy(redis: Redis) -> None:
    """Some are in flight, or nothing is left that could be."""
    wait_until(
        lambda: redis.hlen(f"{QUEUE}:claimed") > BUSY or not redis.zcard(QUEUE), 120, "pollers at work"
    )


def store_client(url: str) -> Redis:
    """The harness's own connection, which waits for a server that starts again."""
    failures: list[type[Exception]] = [NoConnection, BusyLoadingError, ReadOnlyError]
    return Redis.from_url(url, retry=Retry(ConstantBackoff(0.1), 100), retry_on_error=failures)


def keys_left(redis: Redis) -> set[str]:
    """All keys but what expires by itself: the memory of batches and of answered deliveries, and what pollers tell."""
    passing = re.compile(rf".*:(settled|status):|{DELIVERY_PREFIX}")
    return {name for key in redis.scan_iter(count=1_000) if not passing.match(name := key.decode())}


def read_results(redis: Redis) -> list[dict[str, Any]]:
    """All of them, newest first."""
    return [json.loads(text) for text in cast(list[bytes], redis.lrange(RESULTS, 0, -1))]


def wait_until_drained(redis: Redis, count: int) -> None:
    """Until there are `count` results and nothing is queued or held. Raises `NotInTime`: the run is invalid then."""
    held = (QUEUE, f"{QUEUE}:claimed", RETRIES)
    wait_until(lambda: redis.llen(RESULTS) >= count, 90 + count / 50, "all results")
    wait_until(lambda: not redis.exists(*held), 30, "nothing is held")
