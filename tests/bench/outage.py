"""A failing gateway: number of calls, cost of waiting, and time until the backlog flows again."""

from __future__ import annotations

import json
import time
import urllib.request

import redis

from tests.bench.measuring import Started, gateway, handler, poller, valkey
from tests.bench.scenarios import RESULTS, Figures, fill
from tests.waiting import elapse, wait_until

ANSWER_SECONDS = 0.25
"""Seconds of one request: 64 workers make at most 256 answers per second."""


def set_faults(up: Started, **rates: float) -> None:
    """Set the shares of requests that fail."""
    body = json.dumps({name.removeprefix("status_"): rate for name, rate in rates.items()}).encode()
    urllib.request.urlopen(f"{up.url}/simulate/faults", body, timeout=10).close()


def calls(up: Started) -> int:
    """The number of requests that the gateway has ended."""
    with urllib.request.urlopen(f"{up.url}/simulate/state", timeout=10) as answer:
        return sum(json.load(answer)["statuses"].values())


def outage(count: int) -> Figures:
    """A tenth of failures, then an outage with `count` requests queued, then its end."""
    with (
        valkey() as server,
        gateway("--time-to-first-token", str(ANSWER_SECONDS), "--time-per-token", "0") as up,
        handler("dispatch", {"IGW_BASE_URL": up.url}) as door,
        poller({"REDIS_URL": server.url, "HANDLER_URL": door.url, "IGW_BASE_URL": up.url}) as polling,
        redis.Redis.from_url(server.url) as store,
    ):
        calm = _rate(store, count // 8)
        set_faults(up, status_503=0.1)
        before = calls(up)
        _rate(store, count // 8)
        calls_a_request = (calls(up) - before) / (count // 8)
        set_faults(up, status_503=1.0)
        fill(store, count)
        calls_while_open = _in_outage(up, [polling, door], 10.0 if count > 1_000 else 0.5)
        set_faults(up)
        back = _seconds_until(store, 0.9 * calm, count)
        wait_until(lambda: store.llen(RESULTS) >= count, timeout_seconds=300, what="all results")
    return {"calls a request at 10 %": calls_a_request, **calls_while_open, "seconds to 90 % goodput": back}


def _rate(store: redis.Redis, count: int) -> float:
    """Answers per second, from a full queue to an empty one."""
    began = time.monotonic()
    fill(store, count)
    wait_until(lambda: store.llen(RESULTS) >= count, timeout_seconds=120, what=f"{count} results")
    store.delete(RESULTS)
    return count / (time.monotonic() - began)


def _in_outage(up: Started, processes: list[Started], seconds: float) -> Figures:
    """Calls that reach the gateway while the circuits are open, and the CPU of the processes."""
    elapse(2.0, "the circuits open")
    before, cpu = calls(up), [one.cpu_seconds() for one in processes]
    began = time.monotonic()
    elapse(seconds, "the outage that is measured")
    passed = time.monotonic() - began
    used = [(one.cpu_seconds() - spent) / passed * 100 for one, spent in zip(processes, cpu, strict=True)]
    return {"probes/s": (calls(up) - before) / passed, "poller CPU %": used[0], "handler CPU %": used[1]}


def _seconds_until(store: redis.Redis, rate: float, count: int) -> float:
    """Seconds until one second brings that many answers, or until all `count` have arrived."""
    began = time.monotonic()
    while True:
        before, at = int(store.llen(RESULTS)), time.monotonic()
        elapse(1.0, "a second of goodput")
        after = int(store.llen(RESULTS))
        if after >= count or (after - before) / (time.monotonic() - at) >= rate:
            return time.monotonic() - began
        if time.monotonic() - began > 120:
            return float("inf")
