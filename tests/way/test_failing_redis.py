"""While Redis fails, the poller reports it, costs little, loses nothing, and then continues. F20, F23 to F26."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
import redis

from handlers.demo.servers import free_port
from handlers.demo.valkey import Valkey, find_valkey
from tests.servers.forked import COMMAND, ForkedChild
from tests.waiting import elapse, wait_until
from tests.way.breakable import Breakable

Fault = Callable[[Breakable], AbstractContextManager[None]]


@pytest.fixture(scope="module")
def rig() -> Iterator[Breakable]:
    with Breakable() as running:
        yield running


@contextlib.contextmanager
def down(rig: Breakable) -> Iterator[None]:
    """F20: killed, and started again with its append-only file."""
    rig.kill_redis()
    try:
        yield
    finally:
        rig.start_redis()


@contextlib.contextmanager
def loading(rig: Breakable) -> Iterator[None]:
    """F26: up again, and loading its data."""
    for number in range(250):
        rig.store.set(f"filler:{number}", os.urandom(2_000), ex=600)
    rig.store.bgrewriteaof()
    wait_until(lambda: rig.store.info("persistence")["aof_rewrite_in_progress"] == 0, "the file rewritten")
    rig.kill_redis()
    slowly = ("--key-load-delay", "200000", "--loading-process-events-interval-bytes", "1024")
    rig.start_redis(*slowly, is_ready="RDB memory usage")
    try:
        yield
    finally:
        rig.store.config_set("key-load-delay", "0")


@contextlib.contextmanager
def read_only(rig: Breakable) -> Iterator[None]:
    """F26: a replica, as after a failover."""
    rig.store.replicaof("127.0.0.1", "1")
    try:
        yield
    finally:
        rig.store.replicaof("NO", "ONE")


@contextlib.contextmanager
def full(rig: Breakable) -> Iterator[None]:
    """F26: over its memory limit."""
    rig.store.config_set("maxmemory", "1")
    try:
        yield
    finally:
        rig.store.config_set("maxmemory", "0")


def is_busy(rig: Breakable) -> bool:
    try:
        rig.store.ping()
    except redis.ResponseError as error:
        return "BUSY" in str(error)
    return False


@contextlib.contextmanager
def busy(rig: Breakable) -> Iterator[None]:
    """F26: a script that does not end."""
    rig.store.config_set("busy-reply-threshold", "20")

    def run() -> None:
        with contextlib.suppress(redis.ResponseError), redis.from_url(rig.redis_url, socket_timeout=60) as other:
            other.eval("while true do end", 0)

    running = threading.Thread(target=run)
    running.start()
    try:
        wait_until(lambda: is_busy(rig), "the script to keep the server busy")
        yield
    finally:
        rig.store.script_kill()
        running.join()


@contextlib.contextmanager
def black_hole(rig: Breakable) -> Iterator[None]:
    """F24: connections stay open without any answer."""
    rig.proxy.is_black_hole = True
    try:
        yield
    finally:
        rig.proxy.is_black_hole = False
        rig.proxy.cut()


@pytest.mark.parametrize("fault", [down, loading, read_only, full, busy, black_hole])
def test_while_redis_fails_nothing_is_lost_and_no_socket_leaks(rig: Breakable, fault: Fault) -> None:
    """F20, F24, F26, L3: readiness reports it, and work continues without a restart."""
    ids = rig.queue(120)
    wait_until(lambda: rig.store.llen("result-list") > 0, "requests in flight")
    files = rig.connections()

    with fault(rig):
        answer = wait_until(lambda: (now := rig.ready())[0] == 503 and now, "not ready")

    assert answer
    assert answer[1].startswith("waiting for redis: ")
    rig.wait_until_ready()
    rig.wait_for_results(ids)
    wait_until(lambda: rig.connections() <= files + 16, "no more sockets than before")


def test_connections_that_are_cut_at_any_moment_cost_no_result_and_no_second_one(rig: Breakable) -> None:
    """F24, F25: also between a script's end and its reply."""
    ids = rig.queue(400)
    for _ in range(40):
        rig.proxy.cut()
        elapse(0.05, "work continues between two cuts")

    rig.wait_for_results(ids)


def test_a_slow_redis_loses_no_request(rig: Breakable) -> None:
    """F24: 200 ms in each direction."""
    rig.proxy.delay_seconds = 0.2
    ids = rig.queue(20)
    try:
        rig.wait_for_results(ids)
        rig.wait_until_ready()
    finally:
        rig.proxy.delay_seconds = 0.0


def test_scripts_are_loaded_again_after_redis_lost_them(rig: Breakable) -> None:
    """F26: SCRIPT FLUSH, as after a restart."""
    ids = rig.queue(100)
    for _ in range(5):
        rig.store.script_flush()
        elapse(0.05, "work continues")

    rig.wait_for_results(ids)
    rig.wait_until_ready()


@pytest.mark.parametrize("fault", [down, black_hole])
def test_an_outage_is_one_line_in_the_log_and_its_end_another(fault: Fault) -> None:
    with Breakable() as own:
        ids = own.queue(40)
        own.wait_for_results(ids)
        with fault(own):
            wait_until(lambda: own.ready()[0] == 503, "not ready")
            elapse(3, "every part to fail")
        own.poller.wait_for(lambda output: output if "Redis available again" in output else None)
        ids = own.queue(40)
        own.wait_for_results(ids)
        events = [json.loads(line) for line in own.poller.output().splitlines() if line.startswith("{")]
    lines = [line for line in events if "Redis" in line["event"]]
    starts, ends = lines[::2], lines[1::2]  # a busy machine may add an outage of its own
    assert {line["event"] for line in starts} == {"work paused: Redis unavailable"}
    assert {line["event"] for line in ends} == {"Redis available again"}
    assert all(line["error"] for line in starts)
    assert all(line["seconds"] > 0 for line in ends)


def test_a_new_reason_during_an_outage_is_logged_once_and_shown_as_not_ready() -> None:
    with Breakable() as own:
        own.kill_redis()
        wait_until(lambda: own.ready()[0] == 503, "not ready")
        own.start_redis("--requirepass", "canary")
        reason = "the server requires a password"
        wait_until(lambda: own.ready()[1].startswith(f"waiting for redis: {reason}"), "the new reason")
        own.poller.wait_for(lambda output: output if reason in output else None)
        elapse(3, "every part to fail")
        output = own.poller.output()
    assert output.count("work still paused: Redis unavailable") == output.count(reason) == 1
    assert "canary" not in output


def test_a_poller_that_starts_without_redis_logs_one_line() -> None:
    variables = {
        "REDIS_URL": f"redis://127.0.0.1:{free_port()}",
        "IGW_BASE_URL": "http://user:canary@x",
        "METRICS_PORT": "0",
    }
    with ForkedChild("poller", [COMMAND, "poll"], variables) as poller:
        poller.wait_for(lambda output: output if '"polling"' in output else None)
        elapse(3, "every part to fail")
        events = [json.loads(line) for line in poller.output().splitlines() if line.startswith("{")]
    assert [line["event"] for line in events if "Redis" in line["event"]] == ["work paused: Redis unavailable"]
    assert [line["gateways"] for line in events if line["event"] == "polling"] == [["http://***@x"]]


def test_after_a_failover_the_promoted_replica_serves_the_queue() -> None:
    """F23, with a replica that has all submissions; lost claims are made again."""
    with (
        Breakable() as own,
        Valkey(find_valkey()) as replica,
        redis.from_url(replica.url, socket_timeout=60) as promoted,
    ):
        own.store.config_set("repl-diskless-sync-delay", "0")
        promoted.replicaof("127.0.0.1", str(own.redis_port))
        wait_until(lambda: promoted.info("replication")["master_link_status"] == "up", "a replica")
        ids = own.queue(100)
        wait_until(lambda: own.store.wait(1, 1_000) == 1, "the replica to have all")
        own.kill_redis()
        promoted.replicaof("NO", "ONE")
        own.follow(promoted, replica.port)

        own.wait_for_results(ids)
        own.wait_until_ready()


def test_f27_a_poller_is_not_ready_while_its_server_may_drop_queues(rig: Breakable) -> None:
    rig.wait_until_ready()
    rig.store.config_set("maxmemory-policy", "allkeys-lru")
    try:
        reported = (503, "Redis may drop queues: set maxmemory-policy noeviction, got allkeys-lru\n")
        wait_until(lambda: rig.ready() == reported, "not ready, for this reason")
        rig.wait_for_results(rig.queue(3))
        rig.store.config_set("maxmemory-policy", "volatile-lru")
        rig.wait_until_ready()
    finally:
        rig.store.config_set("maxmemory-policy", "noeviction")
