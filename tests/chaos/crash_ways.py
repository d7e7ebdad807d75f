"""A process crashes at a named point and a new one finishes (F3), on Redis and on Pub/Sub."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

from redis import Redis

from handlers.demo.stack import ready_port
from handlers.redis_store.scripts import script_text
from tests.chaos.crashing import LEASE_SECONDS, PUBSUB_POINTS, REDIS_POINTS, Process
from tests.chaos.fleet import PUSH_SETTINGS, SETTINGS, Scene
from tests.chaos.history import RESULTS, Execution, read_executions
from tests.chaos.proxy import Proxy
from tests.chaos.pushing import Pushing
from tests.chaos.reading import keys_left
from tests.waiting import elapse, wait_until

QUEUE = "request-sortedset"
_FIRST_DEATH = "after claim"
REQUESTS = 3
AT_ONCE = 8
_SCRIPTS = ("ack", "nack", "release", "reclaim", "begin_delivery", "finish_delivery", "abandon_delivery")
_MAY_DOUBLE = frozenset({"after result write", "during ack"})
"""Points after which the topic has the result, but no process knows it."""
_OWN_SETTINGS = {
    "LEASE_SECONDS": str(LEASE_SECONDS),
    "DEAD_LETTER_TOPIC_ID": "dead",
}
_FIRST_ANSWER: dict[str, dict[str, object]] = {
    "half body read": {"fault": "slow_body", "seconds": 0.5},
    "during nack": {"status": 503},
    "during hand-back": {"fault": "hang", "seconds": 60},
}


@dataclass(frozen=True)
class Case:
    """One run of one point: its requests, its database, its folder."""

    scene: Scene
    point: str
    number: int
    database: int
    folder: Path
    deaths: tuple[str, ...]
    """The points at which processes crash, in order; some points need an earlier crash."""

    @property
    def redis_url(self) -> str:
        """The URL of a database that no other case uses."""
        return f"{self.scene.redis_url}/{self.database}"

    @property
    def ids(self) -> list[str]:
        """The ids of its requests."""
        return [f"{self.point.replace(' ', '-')}-{self.number}-{n}" for n in range(REQUESTS)]

    def body(self, request_id: str, deadline: float) -> bytes:
        """A request whose first attempt has the outcome that the point needs."""
        payload: dict[str, object] = {"model": "m", "prompt": "Hi", "max_tokens": 1, "user": request_id}
        if self.point in _FIRST_ANSWER:
            payload["simulate"] = {"key": request_id, "times": 1, **_FIRST_ANSWER[self.point]}
        return json.dumps({"id": request_id, "payload": payload, "deadline": deadline}).encode()


def run_redis_point(case: Case) -> None:
    """Crash the poller, which contains the handler, and start another one."""
    deadline = float(int(time.time()) + 3_600)
    with Redis.from_url(case.redis_url) as redis, ExitStack() as living:
        redis.flushdb()
        redis.zadd(QUEUE, {case.body(one, deadline): deadline for one in case.ids})
        for death in case.deaths:
            dying = living.enter_context(_poller(case, death))
            if death == "during hand-back":
                wait_until(
                    lambda: redis.hlen(f"{QUEUE}:claimed") == REQUESTS,
                    "claims to hand back",
                    timeout_seconds=90,
                )
                dying.terminate()
            _must_have_died(case, dying)
            if len(case.deaths) > 1:
                elapse(LEASE_SECONDS + 0.1, "the lease of the dead")
        living.enter_context(_poller(case, None))
        wait_until(lambda: redis.llen(RESULTS) >= REQUESTS, f"results after {case.point}", timeout_seconds=120)
        wait_until(lambda: not redis.exists(QUEUE, f"{QUEUE}:claimed"), "nothing is held", timeout_seconds=90)
        results = [json.loads(text) for text in cast(list[bytes], redis.lrange(RESULTS, 0, -1))]
        left = keys_left(redis)
    _judge_redis(case, results, left)


def _must_have_died(case: Case, dying: Process) -> None:
    code = dying.end()
    assert code == -signal.SIGKILL, f"{case.point}: it did not die there, but ended with {code}"


def _judge_redis(case: Case, results: list[dict[str, Any]], left: set[str]) -> None:
    assert Counter(one["id"] for one in results) == Counter(case.ids), f"{case.point}: one result for each"
    if case.point == "in dead-letter move":
        assert left == {RESULTS, f"{QUEUE}:dead"}, left
        assert {one["error_code"] for one in results} == {"UNDELIVERABLE"}
        return
    assert left == {RESULTS}, f"{case.point}: {left}"
    assert {one["status_code"] for one in results} == {200}
    _judge_executions(case)


def run_pubsub_point(case: Case) -> None:
    """Crash the push door and start another one, while the subscription pushes on."""
    deadline = time.time() + 3_600
    is_dead_letter = case.point == "in dead-letter move"
    with (
        Redis.from_url(case.redis_url) as redis,
        Pushing(case.number, doubled_share=0) as pushing,
        ExitStack() as living,
    ):
        redis.flushdb()
        proxy = living.enter_context(Proxy())
        dying = living.enter_context(_door(case, case.deaths[0], pushing.host, proxy))
        bodies = [b"[" + one.encode() if is_dead_letter else case.body(one, deadline) for one in case.ids]
        pushing.push(f"http://127.0.0.1:{proxy.port}/push", list(zip(case.ids, bodies, strict=True)))
        for death in [*case.deaths[1:], None]:
            if case.point == "during hand-back":
                wait_until(
                    lambda: len(redis.keys("delivery*")) == REQUESTS,
                    "deliveries in flight",
                    timeout_seconds=90,
                )
                dying.terminate()
            _must_have_died(case, dying)
            dying = living.enter_context(_door(case, death, pushing.host, proxy))
        pushing.wait(120)
        published = list(pushing.results)
    _judge_pubsub(case, published)


def _judge_pubsub(case: Case, published: list[tuple[str, dict[str, str]]]) -> None:
    keys = Counter(attributes["pubsub_message_id"] for _, attributes in published)
    assert set(keys) == {str(n) for n in range(REQUESTS)}, f"{case.point}: each delivery has its answer"
    if case.point == "in dead-letter move":
        assert all(body.startswith("[") for body, _ in published), "the original, among the dead letters"
        return
    assert {json.loads(body)["status_code"] for body, _ in published} == {200}
    assert {(one["id"], one["pubsub_message_id"]) for _, one in published} == {
        (request_id, str(n)) for n, request_id in enumerate(case.ids)
    }, "all copies have one dedupe key"
    duplicates = sum(keys.values()) - REQUESTS
    assert duplicates <= (REQUESTS if case.point in _MAY_DOUBLE else 0), f"{case.point}: {duplicates} doubled"
    _judge_executions(case)


def _judge_executions(case: Case) -> None:
    """Check that each id is executed at most once, and once more per crash; broken answers do not count."""

    def seen() -> list[Execution] | None:
        reported = read_executions(case.scene.witness)
        return reported if {one.key for one in reported} >= set(case.ids) else None

    reported = wait_until(seen, f"the gateway's word on {case.point}")
    served = Counter(one.key for one in reported or () if not one.asks_again)
    most = max(served[one] for one in case.ids)
    assert most <= 1 + len(case.deaths), f"{case.point}: one was executed {most} times"


@contextmanager
def _process(case: Case, points: str, point: str | None, arguments: Sequence[str], **own: str) -> Iterator[Process]:
    log = case.folder / f"{points}-{case.number}-{point or 'living'}.log"
    variables = {**SETTINGS, **_OWN_SETTINGS, "IGW_BASE_URL": case.scene.gateway_url, **own}
    process = Process(points, point, arguments, variables, log)
    try:
        yield process
    finally:
        process.stop()


@contextmanager
def _poller(case: Case, point: str | None) -> Iterator[Process]:
    most_deaths = "1" if case.point == "in dead-letter move" else "1000"
    with _process(case, "redis", point, ["poll"], REDIS_URL=case.redis_url, MAX_DEATHS=most_deaths) as process:
        yield process


@contextmanager
def _door(case: Case, point: str | None, publish_host: str, proxy: Proxy) -> Iterator[Process]:
    own = {**PUSH_SETTINGS, "PUBSUB_EMULATOR_HOST": publish_host, "DEDUPE_REDIS_URL": case.redis_url}
    with _process(case, "pubsub", point, ["serve", "--target", "pubsub_push"], **own) as process:
        port = wait_until(lambda: process.found(ready_port) or "", "the door", timeout_seconds=90)
        proxy.backends = [("127.0.0.1", int(port))]
        yield process


WAYS = {
    "redis": (run_redis_point, REDIS_POINTS, {"in reclaim", "in dead-letter move"}),
    "pubsub": (run_pubsub_point, PUBSUB_POINTS, {"in reclaim"}),
}
"""Function that runs a point, the points, and those that need the remains of a crashed process."""


def run_crash_points(folder: Path, transport: str, repeats: int) -> int:
    """Run every point of a transport `repeats` times; returns the number of crashes."""
    run_point, points, needing_dead = WAYS[transport]
    databases: SimpleQueue[int] = SimpleQueue()
    for database in range(AT_ONCE):
        databases.put(database)
    with Scene(folder) as scene, Redis.from_url(scene.redis_url) as redis:
        for name in _SCRIPTS:
            redis.script_load(script_text(name))  # otherwise the first call would only find that the script is unknown

        def run_one(point: str, number: int) -> int:
            database = databases.get()
            needs_dead = point in needing_dead
            case = Case(scene, point, number, database, folder, (_FIRST_DEATH,) * needs_dead + (point,))
            try:
                run_point(case)
            finally:
                databases.put(database)
            return len(case.deaths)

        with ThreadPoolExecutor(AT_ONCE) as threads:
            futures = [
                threads.submit(run_one, point, number * len(points) + at)
                for number in range(repeats)
                for at, point in enumerate(points)
            ]
            return sum(future.result() for future in as_completed(futures))
