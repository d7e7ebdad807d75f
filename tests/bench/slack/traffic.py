"""The traffic of a run: real-time requests in an open loop, a deep queue, outages, a controller."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp
import msgspec
from redis.asyncio import Redis

from tests.bench.slack.profile import MEAN_SECONDS, TOKENS, Arrival, Profile
from tests.bench.slack.setups import POOL, TENANT
from tests.waiting import elapse_async

QUEUE, RESULTS = "request-sortedset", "result-list"
FAR_SECONDS = 3_600
URGENT_SECONDS = 20.0
"""Seconds from submission to deadline of the urgent requests."""
_STEER_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class RealTime:
    """One real-time request: its planned start, its duration, and its status."""

    at: float
    seconds: float
    status: int


class RealTimeLoad:
    """Sends each arrival at its time, independent of earlier ones; `in_flight` are unfinished."""

    def __init__(self, gateway_url: str, session: aiohttp.ClientSession) -> None:
        self._url = f"{gateway_url}/v1/completions"
        self._session = session
        self.in_flight = 0
        self.seen: list[RealTime] = []

    async def run(self, found: Sequence[Arrival], started_at: float) -> None:
        async with asyncio.TaskGroup() as group:
            for number, arrival in enumerate(found):
                await elapse_async(started_at + arrival.at - time.time(), "arrivals are open-loop")
                group.create_task(self._send(number, arrival, started_at))

    async def _send(self, number: int, arrival: Arrival, started_at: float) -> None:
        payload = {"model": "m", "prompt": "hi", "max_tokens": arrival.tokens, "user": f"r{number}"}
        headers = {"x-llm-d-inference-objective": "real-time"}
        self.in_flight += 1
        try:
            async with self._session.post(self._url, json=payload, headers=headers) as response:
                await response.read()
                # From the planned start, so that a late sender does not hide a wait.
                taken = time.time() - started_at - arrival.at
                self.seen.append(RealTime(arrival.at, taken, response.status))
        finally:
            self.in_flight -= 1


def queued_body(number: int, deadline: float) -> bytes:
    """A request for the queue; its lengths have the same range as the real-time ones."""
    tokens = TOKENS[0] + number * 37 % (TOKENS[1] - TOKENS[0] + 1)
    return msgspec.json.encode(
        {
            "id": f"q{number}",
            "created": int(time.time()),
            "deadline": deadline,
            "metadata": {"userid": TENANT},
            "payload": {"model": "m", "prompt": "hi", "max_tokens": tokens, "user": f"q{number}"},
        }
    )


async def fill_queue(redis: Redis, count: int) -> None:
    """Fill the queue with requests that have late deadlines."""
    deadline = int(time.time()) + FAR_SECONDS
    for begin in range(0, count, 1_000):
        bodies = [queued_body(number, deadline) for number in range(begin, min(count, begin + 1_000))]
        await redis.zadd(QUEUE, dict.fromkeys(bodies, deadline))


async def submit_urgent(redis: Redis, first: int, until_at: float) -> None:
    """Submit one request per second with a short deadline."""
    number = first
    while time.time() < until_at:
        deadline = time.time() + URGENT_SECONDS
        await redis.zadd(QUEUE, {queued_body(number, deadline): deadline})
        number += 1
        await elapse_async(1, "one a second")


async def change_capacity(
    session: aiohttp.ClientSession, gateway_url: str, profile: Profile, started_at: float
) -> None:
    """Remove slots from the pool and add them again, as the phases require."""
    for begins, phase in zip(profile.starts(), profile.phases, strict=True):
        await elapse_async(started_at + begins - time.time(), "the phases are timed")
        wanted = {"capacity": round(profile.slots * phase.capacity)}
        async with session.post(f"{gateway_url}/simulate/engine", json=wanted) as response:
            response.raise_for_status()


async def steer(redis: Redis, controller: str, load: RealTimeLoad, profile: Profile, started_at: float) -> None:
    """An outside controller that knows the real-time load and writes the rest until cancelled."""
    while True:
        slots = profile.capacity_at(time.time() - started_at)
        left = max(0.0, slots - load.in_flight) / profile.slots
        if controller == "budget":
            await redis.set("dispatch-gate-budget", f"{left:.4f}")
        else:
            for name, value in _lease(left * profile.slots / MEAN_SECONDS).items():
                await redis.hset("rate", name, value)
        await elapse_async(_STEER_SECONDS, "the controller steers at intervals")


def _lease(per_second: float) -> dict[str, str]:
    now_ms = int(time.time() * 1_000)
    return {
        "api_version": "llm-d.ai/v1alpha1",
        "pool_id": POOL,
        "max_admission_rps": f"{per_second:.3f}",
        "valid_until_unix_ms": str(now_ms + 10_000),
        "decision_id": str(now_ms),
    }
