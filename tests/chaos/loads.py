"""Difficult loads: little memory; killed pollers beside large requests, a failing tenant, a full Redis."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from handlers.demo.valkey import Valkey
from tests.chaos.fleet import DEFAULT_LEASES, SETTINGS, Fleet
from tests.chaos.history import executed_again, judge_results, read_executions
from tests.chaos.pushing import Pushing
from tests.chaos.reading import QUEUE, ResultReader, store_client
from tests.poller.limited import MEMORY_LIMIT, check_each_is_inferred_once
from tests.servers.presence import valkey_program
from tests.waiting import elapse, wait_until

IN_TIME_SECONDS, IN_TIME_SHARE = 10.0, 0.95
BAD, GOOD_PER_SECOND = 200, 5
_HOUR = 3_600.0
_KILLS = 4


@contextlib.contextmanager
def _running(folder: Path, seed: int, settings: Mapping[str, str] = SETTINGS) -> Iterator[tuple[Fleet, Redis]]:
    with (
        Pushing(seed) as pushing,
        Fleet(folder, pushing.host, pollers=2, handlers=2, settings=settings) as fleet,
        store_client(fleet.redis_url) as redis,
    ):
        yield fleet, redis


def _body(name: str, deadline: float, **payload: object) -> bytes:
    """A request's body, with its id for the gateway's record."""
    whole = {"model": "m", "prompt": "Hi", "max_tokens": 1, "user": name, **payload}
    return json.dumps({"id": name, "payload": whole, "deadline": deadline}).encode()


def _has(reader: ResultReader, count: int) -> bool:
    return reader.take() >= count


def run_large(folder: Path, seed: int, count: int, size: int) -> str:
    """Run `count` requests of `size` bytes, about half with JSON that is slow to decode."""
    chance, deadline = random.Random(seed), float(int(time.time()) + 24 * _HOUR)
    names = [f"large-{seed}-{n}" for n in range(count)]
    with _running(folder, seed) as (fleet, redis):
        reader = ResultReader(redis)
        for at, name in enumerate(names):
            prompt = [[]] * (size // 4) if at % 2 else "x" * size
            redis.zadd(QUEUE, {_body(name, deadline, prompt="Hi", extra=prompt): deadline})
            if at % max(1, count // _KILLS) == count // _KILLS // 2:
                fleet.end_poller(chance.randrange(2), signal.SIGKILL)
            reader.take()
        reader.wait_until_drained(count)
    judge_results(dict.fromkeys(names, deadline), reader.results, read_executions(fleet.witness))
    assert all(one.get("status_code") == 200 for one in reader.results), "each is answered by the gateway"
    return f"{count} requests of {size} bytes, {_KILLS} kills: each answered once"


def run_memory(requests: int, answers: int) -> str:
    """Requests of 9.9 MB, then answers of 7.9 MB, through a poller whose memory the kernel limits."""
    reported = []
    for has_handler in (False, True):
        seconds = [
            asyncio.run(_run_limited(requests, 9_900_000, b"{}", has_handler=has_handler)),
            asyncio.run(_run_limited(answers, 10, b"y" * 7_900_000, has_handler=has_handler)),
        ]
        where = "with a handler" if has_handler else "in process"
        reported.append(
            f"{where}: {requests} requests of 9.9 MB in {seconds[0]:.0f} s, "
            f"{answers} answers of 7.9 MB in {seconds[1]:.0f} s"
        )
    return f"{'; '.join(reported)}; within {MEMORY_LIMIT >> 20} MiB per process: each ran once"


async def _run_limited(count: int, request_bytes: int, body: bytes, *, has_handler: bool) -> float:
    began = time.monotonic()
    with Valkey(valkey_program()) as server:
        async with AsyncRedis.from_url(server.url, socket_timeout=60) as store:
            await check_each_is_inferred_once(
                server.url, store, count, request_bytes, body, timeout_seconds=600, has_handler=has_handler
            )
    return time.monotonic() - began


def run_failing_tenant(folder: Path, seed: int, seconds: float) -> str:
    """Run 200 requests that always get 500, due first, and five others per second, with one kill."""
    began = time.time()
    bad_until, good_until = float(int(began + seconds + 60)), began + 24 * _HOUR
    queued_at: dict[str, float] = {}
    waits: list[float] = []
    with _running(folder, seed) as (fleet, redis):
        reader = ResultReader(redis)
        for n in range(BAD):
            name = f"bad-{seed}-{n}"
            body = _body(name, bad_until, simulate={"status": 500})
            redis.zadd(QUEUE, {body: bad_until})
        kill_at, seen = began + seconds / 2, 0
        while len(waits) < seconds * GOOD_PER_SECOND and time.time() < began + 2 * seconds + 60:
            now = time.time()
            if len(queued_at) < min(now - began, seconds) * GOOD_PER_SECOND:
                name = f"good-{seed}-{len(queued_at)}"
                redis.zadd(QUEUE, {_body(name, good_until): good_until})
                queued_at[name] = now
            if now >= kill_at:
                kill_at = began + _HOUR
                fleet.end_poller(0, signal.SIGKILL)
            reader.take()
            new = [one["id"] for one in reader.results[seen:]]
            waits += [now - queued_at[one] for one in new if one in queued_at]
            seen = len(reader.results)
            elapse(0.02, "results are looked for often")
        wait_until(lambda: reader.take() >= BAD + len(queued_at), "results of all", timeout_seconds=seconds + 180)
    ids = {one["id"] for one in reader.results}
    assert len(reader.results) == len(ids) == BAD + len(queued_at), "one result for each"
    share = sum(wait <= IN_TIME_SECONDS for wait in waits) / len(queued_at)
    assert share >= IN_TIME_SHARE, f"{share:.1%} of the others within {IN_TIME_SECONDS:g} s"
    return f"{BAD} requests that always fail, {len(queued_at)} others: {share:.1%} of these within 10 s"


def run_full_redis(folder: Path, seed: int, rounds: int) -> str:
    """Fill Redis to `maxmemory` for less than a lease; no request is lost or runs twice."""
    deadline, each = float(int(time.time()) + 24 * _HOUR), 100
    names = [f"full-{seed}-{n}" for n in range(rounds * each)]
    with _running(folder, seed, DEFAULT_LEASES) as (fleet, redis):
        reader = ResultReader(redis)
        for at in range(rounds):
            some = names[at * each : (at + 1) * each]
            redis.zadd(QUEUE, {_body(name, deadline): deadline for name in some})
            wait_until(lambda: fleet.in_flight() > 0, "requests in flight")
            redis.config_set("maxmemory", "1mb")  # less than an empty server uses
            elapse(3.0, "answers come while nothing can be stored")
            redis.config_set("maxmemory", "0")
            wait_until(partial(_has, reader, (at + 1) * each), "results of the round", timeout_seconds=120)
        reader.wait_until_drained(len(names))
    executions = read_executions(fleet.witness)
    judge_results(dict.fromkeys(names, deadline), reader.results, executions)
    again = executed_again(executions)
    assert not again, f"{again} ran again although no owner died"
    return f"{rounds} times at maxmemory, {len(names)} requests: each got one result, none ran twice"
