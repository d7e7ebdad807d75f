"""What a process costs before its first request and between requests: its start, and a poller of an empty queue."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import redis

from tests.bench.measuring import handler, poller, valkey
from tests.bench.scenarios import PUSH_VARIABLES, QUEUE, Figures, fill
from tests.bench.sink import running_sink
from tests.waiting import elapse

SETTLED_SECONDS = 35.0
"""After this time without requests a poller checks its queues less often."""


def imports_of(modules: str) -> float:
    """Seconds in which a fresh interpreter imports `modules`."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {modules}"], check=True)
    return time.perf_counter() - began


def first_claim(_count: int) -> Figures:
    """From the start of a poller to its first claim, beside the imports that every asyncio program with TLS has."""
    bare = imports_of("asyncio, ssl, uvloop")
    with valkey() as server:
        store = redis.Redis.from_url(server.url)
        fill(store, 1)
        began = time.perf_counter()
        with poller({"REDIS_URL": server.url, "IGW_BASE_URL": "http://127.0.0.1:9"}):
            while store.zcard(QUEUE):
                elapse(0.002, "the start is measured to some milliseconds")
            seconds = time.perf_counter() - began
        store.close()
    return {"first claim s": seconds, "imports s": bare, "first claim / imports": seconds / bare}


def push_door_ready(_count: int) -> Figures:
    """From the start of a push door to its readiness, beside the import of the Pub/Sub library."""
    bare = imports_of("asyncio, ssl, uvloop, google.pubsub_v1")
    with running_sink() as host:
        variables = {"IGW_BASE_URL": "http://127.0.0.1:9", "PUBSUB_EMULATOR_HOST": host, **PUSH_VARIABLES}
        with handler("pubsub_push", variables) as door:
            ready = door.ready_seconds
    return {"start s": ready, "imports s": bare, "start / imports": ready / bare}


def idle_poller(seconds: int) -> Figures:
    """Commands, wake-ups and CPU of a poller whose queue stays empty."""
    with (
        valkey() as server,
        poller({"REDIS_URL": server.url, "IGW_BASE_URL": "http://127.0.0.1:9"}) as polling,
    ):
        store = redis.Redis.from_url(server.url)
        elapse(min(float(seconds), SETTLED_SECONDS), "the poller settles to its slowest checks")
        commands, cpu, wakes = _commands(store), polling.cpu_seconds(), _wakes(polling.process.pid)
        began = time.perf_counter()
        elapse(seconds, "the measured time")
        took = time.perf_counter() - began
        commands, cpu = _commands(store) - commands - 1, polling.cpu_seconds() - cpu
        wakes = _wakes(polling.process.pid) - wakes
        store.close()
    return {"commands/s": commands / took, "wake-ups/s": wakes / took, "CPU %": cpu / took * 100}


def _commands(store: redis.Redis) -> int:
    return int(store.info("stats")["total_commands_processed"])


def _wakes(pid: int) -> int:
    """How often the threads of a process have slept and been woken."""
    total = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        total += int(status.read_text().partition("\nvoluntary_ctxt_switches:")[2].split()[0])
    return total
