"""One run of faults over real processes, and its check."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import msgspec
from redis import Redis

from tests.chaos.faults import Chaos, Plan
from tests.chaos.fleet import SETTINGS, Fleet
from tests.chaos.history import History, Verdict, read_executions, verdict
from tests.chaos.pushing import Pushing
from tests.chaos.reading import QUEUE, ResultReader, keys_left, store_client
from tests.chaos.scaling import Keda
from tests.chaos.stalls import Stalls
from tests.waiting import elapse, wait_until

PUSHED_SHARE = 0.1
SHORT_DEADLINE_SHARE = 0.05
SHORT_SECONDS = 6
BUSY = 24
"""Requests that must be in flight before a fault, so that it affects some."""
BACKLOG = 400
"""Most requests that wait before a fault, so that faults are spread over the run."""
_REPORT_EVERY = 100


def request_body(request_id: str, deadline: float) -> bytes:
    """A request's body, with its id as the key in the gateway's record."""
    payload = {"model": "m", "prompt": "Hi", "max_tokens": 1, "user": request_id}
    return json.dumps({"id": request_id, "payload": payload, "deadline": deadline}).encode()


def run(folder: Path, seed: int, plan: Plan) -> Verdict:
    """Run the plan and check the history. Raises `AssertionError` for an inconsistency."""
    chance, began = random.Random(seed), time.time()
    faults = plan.faults(chance)
    pushed = {f"p-{seed}-{n}": began + 86_400 for n in range(int(plan.requests * PUSHED_SHARE))}
    names = [f"r-{seed}-{n}" for n in range(plan.requests - len(pushed))]
    settings = {**SETTINGS, "WORKERS": str(plan.workers)}
    with (
        Pushing(seed) as pushing,
        Fleet(
            folder, pushing.host, pollers=3, handlers=3, settings=settings, answer_seconds=plan.answer_seconds
        ) as fleet,
        store_client(fleet.redis_url) as redis,
        Stalls() as stalls,
    ):
        reader, keda = ResultReader(redis), Keda(redis)
        chaos = Chaos(fleet, keda, chance)
        pushing.push(fleet.push_url, [(name, request_body(name, deadline)) for name, deadline in pushed.items()])
        queued = _inflict_all(reader, chaos, faults, names, chance)
        chaos.end()
        fleet.gateway("faults")
        reader.wait_until_drained(len(names))
        pushing.wait(600)
        left = keys_left(redis)
        published = list(pushing.results)
        assert not keda.is_active(), "nothing is queued, so nothing may run"
        fleet.scale_to_zero()
        refused = fleet.refused
    reported = History(
        queued,
        sorted(pushed),
        reader.results,
        published,
        sorted(left),
        refused,
        chaos.done,
        began,
        stalls.worst_seconds,
    )
    (folder / "history.json").write_bytes(msgspec.json.encode(reported))
    return verdict(seed, reported, read_executions(fleet.witness))


def _inflict_all(
    reader: ResultReader, chaos: Chaos, faults: list[str], names: list[str], chance: random.Random
) -> dict[str, float]:
    """Make all faults, spread evenly over the requests; returns the queued ids with deadlines."""
    queued: dict[str, float] = {}
    redis = reader.redis
    for at, fault in enumerate(faults):
        some = {name: _deadline(chance) for name in names[at :: len(faults)]}
        # Queued again after a lost reply: an equal member is the same request.
        redis.zadd(QUEUE, {request_body(name, deadline): deadline for name, deadline in some.items()})
        queued |= some
        _wait_until_busy(redis)
        elapse(0.1 * chance.random(), "faults meet requests at any point of their way")
        chaos.inflict(fault)
        results = reader.take()
        if (at + 1) % _REPORT_EVERY == 0:
            print(f"{at + 1} of {len(faults)} faults, {results} results", flush=True)
    return queued


def _deadline(chance: random.Random) -> float:
    seconds = SHORT_SECONDS if chance.random() < SHORT_DEADLINE_SHARE else 86_400
    return float(int(time.time()) + seconds)


def _wait_until_busy(redis: Redis) -> None:
    """Wait until some requests are in flight and few wait, or none are left."""

    def is_busy() -> bool:
        waiting = redis.zcard(QUEUE)
        return not waiting or (redis.hlen(f"{QUEUE}:claimed") > BUSY and waiting <= BACKLOG)

    wait_until(is_busy, "pollers at work", timeout_seconds=120)
