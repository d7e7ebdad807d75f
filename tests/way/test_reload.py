"""A changed configuration file takes effect without a restart; a bad one is refused, told, and changes nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from handlers.demo.stack import Stack, StackOptions
from tests.waiting import wait_until

FAR = int(time.time()) + 86_400
SOON_SECONDS = 60
ONE = "queues: [{queue_name: first}]"
TWO = "queues: [{queue_name: first, result_queue_name: other-results}, {queue_name: second}]"
BAD = "queues: [{queue_name: first, gate_typ: constant}]"


class ConfigMap:
    """A mounted ConfigMap: a file behind a link to a folder that is swapped, as the kubelet does it."""

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
        "SHUTDOWN_GRACE_SECONDS": "30",
    }
    tokens = ("--time-per-token", "0.02")  # so that a request of many is in flight for seconds
    with Stack(StackOptions(has_pubsub=False, variables=variables, gateway_arguments=tokens)) as running:
        yield running


@pytest.fixture
def store(stack: Stack) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(stack.redis_url)
    yield client
    client.close()


def queue(store: redis.Redis, name: str, request_id: str, **payload: object) -> None:
    body = {"id": request_id, "deadline": FAR, "payload": {"prompt": "x", **payload}}
    store.zadd(name, {json.dumps(body): FAR})


def result_of(store: redis.Redis, name: str) -> dict[str, object]:
    found = store.blpop([name], timeout=SOON_SECONDS)
    assert found is not None
    result: dict[str, object] = json.loads(found[1])
    return result


def told(stack: Stack, who: str, event: str, count: int = 1) -> None:
    child = stack.children[who]
    wait_until(lambda: child.output().count(event) >= count, SOON_SECONDS, f"{who}: {event}")


def test_queues_come_and_change_while_what_is_in_flight_is_finished(
    stack: Stack, store: redis.Redis, config: ConfigMap
) -> None:
    queue(store, "second", "early")
    queue(store, "first", "long", max_tokens=200)
    wait_until(lambda: store.hlen("first:claimed"), SOON_SECONDS, "the long request in flight")

    config.write(TWO)
    told(stack, "poller", "configuration reloaded")
    told(stack, "dispatch", "configuration reloaded")

    assert result_of(store, "result-list")["id"] in ("early", "long")
    assert result_of(store, "result-list")["id"] in ("early", "long"), (
        "begun under the old file, answered by it"
    )
    queue(store, "first", "late")
    assert result_of(store, "other-results")["id"] == "late"


def test_a_file_that_is_wrong_is_refused_and_told_and_the_next_good_one_is_taken(
    stack: Stack, store: redis.Redis, config: ConfigMap
) -> None:
    config.write(BAD)
    for who in ("poller", "dispatch"):
        told(stack, who, "configuration refused")
    assert "gate_typ" in stack.children["poller"].output()
    queue(store, "first", "still")
    assert result_of(store, "result-list")["id"] == "still"

    config.write("{ no yaml")
    told(stack, "poller", "configuration refused", 2)
    config.write(TWO)
    told(stack, "poller", "configuration reloaded")
    queue(store, "second", "now")
    assert result_of(store, "result-list")["id"] == "now"


def test_a_queue_that_goes_is_no_longer_claimed(stack: Stack, store: redis.Redis, config: ConfigMap) -> None:
    config.write("queues: [{queue_name: second}]")
    told(stack, "poller", '"event":"drained"')
    queue(store, "first", "left")
    queue(store, "second", "taken")
    assert result_of(store, "result-list")["id"] == "taken"
    assert store.zcard("first") == 1
