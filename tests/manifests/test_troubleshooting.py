"""Rows of the troubleshooting table in keda/README.md, with real servers and processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError, ResponseError

from handlers.demo.valkey import Valkey
from handlers.redis_store.admin.acl import Role, acl_rules
from tests.manifests.keda_rehearsal import COUNT
from tests.manifests.rendering import ROOT
from tests.servers.presence import redis_program
from tests.servers.process import running_process
from tests.waiting import wait_until

PASSWORD = "right"
QUEUE = "request-sortedset"
README = (ROOT / "keda" / "README.md").read_text()


@pytest.fixture
def server() -> Iterator[Valkey]:
    """A server of this test's own: these tests change its users."""
    with Valkey(redis_program()) as server:
        yield server


def test_missing_and_wrong_passwords_give_the_errors_of_the_table(server: Valkey) -> None:
    with Redis.from_url(server.url) as admin:
        admin.config_set("requirepass", PASSWORD)
    with (
        Redis.from_url(server.url, protocol=2) as client,
        pytest.raises(AuthenticationError, match="Authentication required"),  # NOAUTH, without the word
    ):
        client.eval(COUNT, 1, QUEUE)
    with (
        Redis.from_url(server.url, protocol=2, username="default", password="wrong") as client,
        pytest.raises(AuthenticationError, match="invalid username-password pair"),  # WRONGPASS
    ):
        client.eval(COUNT, 1, QUEUE)
    assert "| `NOAUTH` or `WRONGPASS` in KEDA's log |" in README


def test_a_user_without_llen_fails_on_empty_queues_only(server: Valkey) -> None:
    rules = acl_rules(Role.KEDA)
    assert "+llen" in rules
    with Redis.from_url(server.url) as admin:
        admin.execute_command("ACL", "SETUSER", "keda", "on", f">{PASSWORD}", *rules.split(), "-llen")
        with Redis.from_url(server.url, username="keda", password=PASSWORD) as keda:
            with pytest.raises(ResponseError, match="can't run this command"):
                keda.eval(COUNT, 1, QUEUE)
            admin.zadd(QUEUE, {"a request": 1})
            assert keda.eval(COUNT, 1, QUEUE) == 1
    assert "lacks `+llen`: every read of an empty queue fails" in README


def test_a_queue_of_another_type_is_named_in_the_log_of_the_poller(server: Valkey, tmp_path: Path) -> None:
    with Redis.from_url(server.url) as admin:
        admin.set(QUEUE, "not a sorted set")
    variables = {
        "PATH": os.environ["PATH"],
        "REDIS_URL": server.url,
        "IGW_BASE_URL": "http://127.0.0.1:9",
        "METRICS_PORT": "0",
    }
    command = [str(Path(sys.executable).parent / "async-processor"), "poll"]
    log = tmp_path / "log"
    with (
        log.open("wb") as output,
        running_process(command, env=variables, stdout=output, stderr=subprocess.STDOUT),
    ):
        wait_until(lambda: "WRONGTYPE" in log.read_text(), "the error in the poller's log")
    assert QUEUE in next(line for line in log.read_text().splitlines() if "WRONGTYPE" in line)
    assert "`WRONGTYPE` in the poller's" in README
