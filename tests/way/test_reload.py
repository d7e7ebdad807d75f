"""A changed configuration file takes effect without a restart; an invalid one is refused and reported."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import psutil
import pytest
import redis

from handlers.demo.servers import free_port
from handlers.demo.stack import Stack, StackOptions
from handlers.wiring.forward_stack import EVENT_HOLD_SECONDS
from tests.servers.forked import COMMAND, ForkedChild
from tests.waiting import wait_until

FAR = int(time.time()) + 86_400
SOON_SECONDS = 60
ONE = "queues: [{queue_name: first}]"
TWO = "queues: [{queue_name: first, result_queue_name: other-results}, {queue_name: second}]"
METRICS_TOKEN = "for-the-metrics-of-this-test"
WARM_CHANGES, CHANGES = 5, 12
BAD = "queues: [{queue_name: first, gate_typ: constant}]"


class ConfigMap:
    """A mounted ConfigMap: a file behind a link to a folder that is swapped, as by the kubelet."""

    def __init__(self, folder: Path, text: str) -> None:
        self._folder = folder
        self._number = 0
        self.path = folder / "config.yaml"
        self.write(text)
        self.path.symlink_to("..data/config.yaml")

    def write(self, text: str) -> None:
        self._number += 1
        version = self._folder / f"..{self._number}"
        version.mkdir()
        (version / "config.yaml").write_text(text)
        link = self._folder / "..new"
        link.symlink_to(version.name)
        link.rename(self._folder / "..data")


@pytest.fixture
def config(tmp_path: Path) -> ConfigMap:
    return ConfigMap(tmp_path, ONE)


@pytest.fixture
def stack(config: ConfigMap) -> Iterator[Stack]:
    variables = {
        "CONFIG_FILE": str(config.path),
        "CONFIG_RELOAD_SECONDS": "0.2",
        "SHUTDOWN_GRACE_SECONDS": "60",
        "LEASE_SECONDS": "300",  # so that no poller takes its own claims again, however slow the machine is
        "METRICS_TOKEN": METRICS_TOKEN,
        "ALLOWED_LABELS": "classification",
    }
    tokens = ("--time-per-token", "0.02")  # so that a request of many is in flight for seconds
    with Stack(
        StackOptions(child=ForkedChild, has_pubsub=False, variables=variables, gateway_arguments=tokens)
    ) as running:
        yield running


@pytest.fixture
def store(stack: Stack) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(stack.redis_url, socket_timeout=60)
    yield client
    client.close()


def member(request_id: str, **payload: object) -> str:
    return json.dumps({"id": request_id, "deadline": FAR, "payload": {"prompt": "x", **payload}})


def queue(store: redis.Redis, name: str, request_id: str, **payload: object) -> None:
    store.zadd(name, {member(request_id, **payload): FAR})


def result_of(store: redis.Redis, name: str) -> dict[str, object]:
    text = wait_until(lambda: store.lpop(name), f"a result in {name}")
    assert isinstance(text, bytes)
    result: dict[str, object] = json.loads(text)
    return result


@contextlib.contextmanager
def full_gateway(stack: Stack) -> Iterator[None]:
    """The only slot of the gateway is taken: requests are in flight until the block ends."""
    url = urlsplit(stack.gateway_url)
    body = json.dumps({"max_tokens": 1_000_000}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {url.netloc}\r\ncontent-length: {len(body)}\r\n\r\n"
    urlopen(f"{stack.gateway_url}/simulate/engine", b'{"capacity": 1}', timeout=60).close()
    with socket.create_connection((url.hostname, url.port)) as client:
        client.sendall(head.encode() + body)
        wait_until(lambda: state_of(stack)["running"] == 1, "the slot to be taken")
        yield


def reported(stack: Stack, process: str, event: str, count: int = 1) -> None:
    child = stack.children[process]
    wait_until(lambda: child.output().count(event) >= count, f"{process}: {event}")


def test_queues_are_added_and_changed_while_requests_in_flight_finish(
    stack: Stack, store: redis.Redis, config: ConfigMap
) -> None:
    with full_gateway(stack):
        queue(store, "second", "early")
        queue(store, "first", "long")
        wait_until(lambda: store.hlen("first:claimed"), "the long request in flight")

        config.write(TWO)
        reported(stack, "poller", "configuration reloaded")
        reported(stack, "dispatch", "configuration reloaded")
        shown = 'inflight_requests{pool_name="default",queue_id="first",queue_name="first"} 1.0'
        wait_until(partial(shows, f"{stack.poller_pages_url}/metrics", shown), "it to be shown until it is over")

    assert result_of(store, "result-list")["id"] in ("early", "long")
    assert result_of(store, "result-list")["id"] in ("early", "long"), "begun under the old file, answered by it"
    counted = 'successful_requests_total{pool_name="default",queue_id="first",queue_name="first"} 1.0'
    wait_until(lambda: counted in page(f"{stack.poller_pages_url}/metrics"), "the count")
    queue(store, "first", "late")
    assert result_of(store, "other-results")["id"] == "late"


def test_an_invalid_file_is_refused_and_reported_and_the_next_valid_one_is_applied(
    stack: Stack, store: redis.Redis, config: ConfigMap
) -> None:
    config.write(BAD)
    for process in ("poller", "dispatch"):
        reported(stack, process, "configuration refused")
    assert "gate_typ" in stack.children["poller"].output()
    queue(store, "first", "still")
    assert result_of(store, "result-list")["id"] == "still"

    config.write("{ no yaml")
    reported(stack, "poller", "configuration refused", 2)
    config.write(TWO)
    reported(stack, "poller", "configuration reloaded")
    queue(store, "second", "now")
    assert result_of(store, "result-list")["id"] == "now"


def state_of(stack: Stack) -> dict[str, Any]:
    """The state that the simulated gateway reports."""
    with urlopen(f"{stack.gateway_url}/simulate/state", timeout=60) as answer:
        state: dict[str, Any] = json.loads(answer.read())
        return state


def page(url: str) -> str:
    asked = Request(url, headers={"authorization": f"Bearer {METRICS_TOKEN}"})
    with urlopen(asked, timeout=60) as answer:
        text: str = answer.read().decode()
        return text


def shows(url: str, text: str) -> bool:
    return text in page(url)


def has_at_most(process: psutil.Process, descriptors: int, threads: int) -> bool:
    return process.num_fds() <= descriptors and process.num_threads() <= threads


def with_workers(workers: int, note: object = "") -> str:
    return f"queues: [{{queue_name: first}}]\npools: [{{id: default, workers: {workers}}}]  # {note}\n"


def test_workers_are_never_exceeded_while_files_follow_each_other(
    stack: Stack, store: redis.Redis, config: ConfigMap
) -> None:
    """The old poller still has requests in flight when the next one claims: one limit applies to both."""
    config.write(with_workers(4))
    reported(stack, "poller", "configuration reloaded")
    for number in range(24):
        queue(store, "first", f"r{number}", max_tokens=40)  # 0.8 s each: together longer than the changes
    for change in range(1, 7):
        config.write(with_workers(4, change))
        reported(stack, "poller", "configuration reloaded", change + 1)
    for _ in range(24):
        assert result_of(store, "result-list")["status_code"] == 200
    state = state_of(stack)
    assert state["peak"] == 4
    assert state["statuses"]["200"] == 24, "nothing was sent twice"


def test_fewer_workers_are_in_force_once_requests_in_flight_have_ended(
    stack: Stack, store: redis.Redis, config: ConfigMap
) -> None:
    config.write(with_workers(6))
    reported(stack, "poller", "configuration reloaded")
    # Work for minutes, so that every number of workers has enough of it.
    store.zadd("first", {member(f"r{number}", max_tokens=50): FAR for number in range(3_000)})
    wait_until(lambda: state_of(stack)["running"] == 6, "six at the gateway")
    config.write(with_workers(2))
    reported(stack, "poller", "configuration reloaded", 2)
    # Claims, since a claimed request may still be on its way to the gateway.
    wait_until(lambda: store.hlen("first:claimed") <= 2, "two in flight")
    most = max(state_of(stack)["running"] for _ in range(200))
    assert most <= 2  # a maximum, which does not change any more
    config.write(with_workers(5))
    wait_until(lambda: state_of(stack)["running"] == 5, "five at the gateway")


def test_a_request_that_waits_at_a_gate_follows_the_changed_gate(
    stack: Stack, store: redis.Redis, config: ConfigMap
) -> None:
    """Otherwise it would wait at a removed gate until its deadline."""
    store.set("dispatch-gate-budget", "0")
    saturation = {"saturation_gate": "redis", "saturation_gate_params": {"address": stack.redis_url}}
    gated = {"gate_type": "tier-priority-admission", "gate_params": saturation}
    config.write(json.dumps({"queues": [{"queue_name": "first", "labels": {"tier": "interactive"}, **gated}]}))
    reported(stack, "poller", "configuration reloaded")
    body = {"id": "reserved", "deadline": FAR, "payload": {"prompt": "x"}}
    internal = {"labels": {"classification": "reserved"}}
    store.zadd("first", {json.dumps({"internal": internal, "request_kind": "plain", "data": body}): FAR})
    wait_until(lambda: store.hlen("first:claimed"), "the request at the gate")
    config.write(ONE)
    assert result_of(store, "result-list")["id"] == "reserved"


def test_a_request_in_flight_at_a_reload_has_the_grace_period_at_a_stop(
    stack: Stack, store: redis.Redis, config: ConfigMap
) -> None:
    with full_gateway(stack):
        queue(store, "first", "long")
        wait_until(lambda: state_of(stack)["waiting"] == 1, "the long request in flight")
        config.write(TWO)
        reported(stack, "poller", "configuration reloaded")
        stack.children["poller"].process.terminate()
        reported(stack, "poller", '"draining"')
    assert result_of(store, "result-list")["status_code"] == 200
    assert stack.children["poller"].process.wait(SOON_SECONDS) == 0
    assert state_of(stack)["statuses"] == {"200": 1, "499": 1}, "one call, and the one that filled the gateway"


def test_pages_and_metrics_report_a_refusal_until_it_is_over(stack: Stack, config: ConfigMap) -> None:
    urls = (stack.poller_pages_url, stack.handler_url)
    config.write(BAD)
    for url in urls:
        wait_until(partial(shows, f"{url}/readyz", "refused"), "/readyz")
        wait_until(partial(shows, f"{url}/metrics", "llm_d_async_async_config_refused 1.0"), "/metrics")
    config.write(TWO)
    for url in urls:
        wait_until(partial(shows, f"{url}/readyz", "ready\n"), "/readyz")
        wait_until(partial(shows, f"{url}/metrics", "llm_d_async_async_config_refused 0.0"), "/metrics")


def test_an_event_held_at_a_gate_follows_the_changed_gate_and_counts_against_its_slots(
    stack: Stack, store: redis.Redis, config: ConfigMap
) -> None:
    def pool(**gate: object) -> str:
        return json.dumps({"queues": [{"queue_name": "first"}], "pools": [{"id": "default", "workers": 2, **gate}]})

    def send(number: int) -> int:
        """Send it again only after a legal refusal: it was held for as long as an event may be."""
        while True:
            began = time.monotonic()
            try:
                return send_once(number)
            except HTTPError as refusal:
                with refusal:
                    if time.monotonic() < began + EVENT_HOLD_SECONDS:
                        raise

    def send_once(number: int) -> int:
        headers = {"ce-specversion": "1.0", "ce-id": f"{number}", "ce-source": "/t", "ce-type": "t"}
        body = {"id": f"r{number}", "deadline": FAR, "payload": {"max_tokens": 40}}
        with urlopen(Request(stack.handler_url, json.dumps(body).encode(), headers), timeout=60) as answer:
            return int(answer.status)

    store.set("dispatch-gate-budget", "0")
    config.write(pool(gate_type="redis", gate_params={"address": stack.redis_url}))
    reported(stack, "dispatch", "configuration reloaded")
    with ThreadPoolExecutor(8) as senders:
        sent = [senders.submit(send, number) for number in range(8)]
        held = 'handler_inflight_deliveries{door="dispatch"} 8.0'
        wait_until(lambda: held in page(f"{stack.handler_url}/metrics"), "eight at the gate")
        for change in range(4):
            config.write(pool(gate_type="local-max-concurrency", gate_params={"limit": 100 + change}))
            reported(stack, "dispatch", "configuration reloaded", change + 2)
        answers = [one.result() for one in sent]
    assert set(answers) == {200}
    state = state_of(stack)
    assert state["statuses"] == {"200": 8}, "each was sent: the replaced gate held none until it was refused"
    assert state["peak"] <= 2


def test_reloads_leave_no_descriptors_or_threads_behind(stack: Stack, store: redis.Redis, config: ConfigMap) -> None:
    def gated(change: int) -> str:
        gate = {
            "gate_type": "redis",
            "gate_params": {"address": stack.redis_url, "budget_key": f"key-{change}"},
        }
        queues = [{"queue_name": name, **gate} for name in ("first", "second")]
        return json.dumps({"queues": queues, "pools": [{"id": "default", **gate}]})

    processes = [psutil.Process(stack.children[process].process.pid) for process in ("poller", "dispatch")]
    seen: list[list[tuple[int, int]]] = []
    for change in range(CHANGES):
        config.write(gated(change))
        reported(stack, "poller", "configuration reloaded", change + 1)
        reported(stack, "dispatch", "configuration reloaded", change + 1)
        if change <= WARM_CHANGES:
            seen.append([(one.num_fds(), one.num_threads()) for one in processes])
    # The maximum of each, because one sample may be taken while connections close.
    before = [tuple(map(max, zip(*scans, strict=True))) for scans in zip(*seen, strict=True)]
    for one, (descriptors, threads) in zip(processes, before, strict=True):
        wait_until(partial(has_at_most, one, descriptors + 2, threads + 1), "closed sockets and ended threads")
    queue(store, "second", "after-all")
    assert result_of(store, "result-list")["id"] == "after-all"


def test_the_status_page_shows_the_queues_of_the_changed_file(stack: Stack, config: ConfigMap) -> None:
    port = free_port()
    variables = {
        "REDIS_URL": stack.redis_url,
        "CONFIG_FILE": str(config.path),
        "CONFIG_RELOAD_SECONDS": "0.2",
    }
    command = [COMMAND, "status", "--port", str(port)]

    def names(queue_name: str) -> bool:
        try:
            return shows(f"http://127.0.0.1:{port}/", queue_name)
        except OSError:
            return False

    with ForkedChild("status", command, variables):
        wait_until(lambda: names("first"), "the page")
        assert not names("second")
        config.write(TWO)
        wait_until(lambda: names("second"), "the second queue")
        config.write(BAD)
        wait_until(lambda: names("second"), "the page of the last good file")


def test_a_removed_queue_is_no_longer_claimed(stack: Stack, store: redis.Redis, config: ConfigMap) -> None:
    config.write("queues: [{queue_name: second}]")
    reported(stack, "poller", '"event":"queue drained"')
    queue(store, "first", "left")
    queue(store, "second", "taken")
    assert result_of(store, "result-list")["id"] == "taken"
    assert store.zcard("first") == 1
