"""One run: real gateway, Valkey, handler and poller processes, and the load between them."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import msgspec
from redis.asyncio import Redis

from handlers.demo.view import WitnessLine, read_witness
from tests.bench.measuring import gateway, handler, poller, valkey
from tests.bench.slack.profile import FIRST_TOKEN_SECONDS, TOKEN_SECONDS, Profile, arrivals
from tests.bench.slack.setups import QUEUED_OBJECTIVE, Setup, filled
from tests.bench.slack.traffic import (
    QUEUE,
    RESULTS,
    RealTime,
    RealTimeLoad,
    change_capacity,
    fill_queue,
    steer,
    submit_urgent,
)
from tests.servers.prometheus import running_prometheus
from tests.waiting import elapse_async

_GATEWAY_PLACES = 2_000
_SETTLE_SECONDS = 0.2  # the witness writes every 50 ms


@dataclass(frozen=True, slots=True)
class Record:
    """The records of one run: the gateway's witness, the real-time answers, the queue's results."""

    setup: Setup
    profile: Profile
    started_at: float
    witness: list[WitnessLine]
    real_time: list[RealTime]
    past_deadline: int


@dataclass(frozen=True, slots=True)
class _Parts:
    gateway_url: str
    redis_url: str
    witness: Path


def run(setup: Setup, profile: Profile, seed: int) -> Record:
    """Run one setup in its own processes; takes as long as the profile, plus a few seconds."""
    with _running(setup, profile) as parts:
        return asyncio.run(_measure(setup, profile, seed, parts))


@contextlib.contextmanager
def _running(setup: Setup, profile: Profile) -> Iterator[_Parts]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slack-")))
        witness = folder / "witness.jsonl"
        arguments = ["--capacity", str(profile.slots), "--queue-size", str(_GATEWAY_PLACES)]
        arguments += ["--time-to-first-token", str(FIRST_TOKEN_SECONDS)]
        arguments += ["--time-per-token", str(TOKEN_SECONDS), "--witness", str(witness)]
        if setup.has_priorities:
            arguments += ["--evicts", "--sheddable", QUEUED_OBJECTIVE]
        up = stack.enter_context(gateway(*arguments))
        redis_url = stack.enter_context(valkey()).url
        if setup.has_queue:
            addresses = {"gateway": up.url, "redis": redis_url.removeprefix("redis://").split("/")[0]}
            variables = {"IGW_BASE_URL": up.url, "REDIS_URL": redis_url}
            if setup.has_prometheus:
                host = up.url.removeprefix("http://")
                variables["PROMETHEUS_URL"] = stack.enter_context(running_prometheus([host]))
            variables |= _settings(setup, profile, folder, addresses)
            door = stack.enter_context(handler("dispatch", variables))
            stack.enter_context(poller({**variables, "HANDLER_URL": door.url}))
        yield _Parts(up.url, redis_url, witness)


def _settings(setup: Setup, profile: Profile, folder: Path, addresses: Mapping[str, str]) -> dict[str, str]:
    pool = {"id": "slack", "workers": profile.slots}
    if setup.gate_type:
        pool |= {"gate_type": setup.gate_type, "gate_params": filled(setup.params, addresses)}
    queue = {
        "queue_name": QUEUE,
        "worker_pool_id": "slack",
        "inference_objective": QUEUED_OBJECTIVE,
        "labels": {"classification": "overflow", "tier": "async"},
    }
    path = folder / "config.json"
    path.write_bytes(msgspec.json.encode({"queues": [queue], "pools": [pool]}))
    return {"CONFIG_FILE": str(path), "GATE_REFRESH_SECONDS": str(setup.refresh_seconds)}


async def _measure(setup: Setup, profile: Profile, seed: int, parts: _Parts) -> Record:
    redis = Redis.from_url(parts.redis_url)
    connector = aiohttp.TCPConnector(limit=0)
    async with contextlib.aclosing(redis), aiohttp.ClientSession(connector=connector) as session:
        load = RealTimeLoad(parts.gateway_url, session)
        depth = round(profile.seconds * profile.slots * 2)
        if setup.has_queue:
            await fill_queue(redis, depth)
        started_at = time.time()
        until_at = started_at + profile.seconds
        beside = [asyncio.create_task(change_capacity(session, parts.gateway_url, profile, started_at))]
        if setup.has_queue:
            beside.append(asyncio.create_task(submit_urgent(redis, depth, until_at)))
        if setup.controller:
            beside.append(asyncio.create_task(steer(redis, setup.controller, load, profile, started_at)))
        await load.run(arrivals(profile, seed), started_at)
        await elapse_async(until_at + _SETTLE_SECONDS - time.time(), "the phases are timed")
        for task in beside:
            task.cancel()
        for ended in await asyncio.gather(*beside, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended
        past_deadline = sum(b"DEADLINE_EXCEEDED" in result for result in await redis.lrange(RESULTS, 0, -1))
    with parts.witness.open("rb") as lines:
        return Record(setup, profile, started_at, read_witness(lines), load.seen, past_deadline)
