"""A poller meets each refusal of Redis in turn: it continues or names the refusal, and then every request has a result.

The rights and keys are collected, so that a new one is tried as well: rights from the poller's rules, keys and their
types from the commands that a poller sends.
"""

from __future__ import annotations

import contextlib
import json
import re
import uuid
from collections.abc import Iterator
from datetime import timedelta
from itertools import count
from typing import Any, cast

import msgspec
import pytest
import redis

from handlers.client.new_request import NewRequest
from handlers.client.options import ClientOptions
from handlers.client.sync_client import Client
from handlers.redis_store.admin.acl import Role, acl_rules
from handlers.redis_store.keys import CANCELLATIONS, PAYLOAD_PREFIX, queue_keys
from tests.servers.valkey import LONG_LIMIT
from tests.waiting import wait_until
from tests.way.breakable import QUEUE, RESULTS, RETRIES, Breakable

RULES = acl_rules(Role.POLLER).split(" ")
_IN_A_CLUSTER = ("+cluster", "+command", "+readonly", f"~{{{QUEUE}", f"~{{{RETRIES}", f"~{{{RESULTS}")
RIGHTS = sorted(rule for rule in RULES if rule.startswith(("+", "~")) and not rule.startswith(_IN_A_CLUSTER))
TYPES = {"H": "hash", "Z": "zset", "L": "list", "G": "string", "S": "string"}
"""The type of a key by the first letter of a command on it."""
PLAIN = 24
"""More than the poller has slots for, so that some are pending and some in flight when Redis begins to refuse."""
_OF_ANY_TYPE = {"SCAN", "SCRIPT", "SUBSCRIBE"}
_ID = re.compile(r"(?<=:)(b[0-9]+-\w+.*|[0-9]+:.*|(n?ack-)?[0-9a-f]{40})$")
_SETTINGS = {"IDEMPOTENT_SECONDS": "60", "RESULT_APART_BYTES": "300"}
_BATCHES = count()


class Rig(Breakable):
    """A poller with the least rights, and a test that connects as an administrator."""

    def __init__(self) -> None:
        super().__init__(_SETTINGS)
        self._run("ACL", "SETUSER", "admin", "on", "nopass", "~*", "&*", "+@all")
        self.store.close()
        url = f"redis://admin:-@127.0.0.1:{self.redis_port}"
        self.store = self._parts.enter_context(redis.Redis.from_url(url, socket_timeout=60))
        self.client = self._parts.enter_context(
            Client.for_redis(url, ClientOptions(payload_apart_bytes=200), access=LONG_LIMIT)
        )
        self.allow(RULES)

    def allow(self, rules: list[str]) -> None:
        """Give the poller exactly these rights."""
        self._run("ACL", "SETUSER", "default", "reset", "on", "nopass", *rules)

    def _run(self, *words: str) -> Any:
        return self.store.execute_command(*words)  # type: ignore[no-untyped-call]  # untyped

    def submit(self) -> list[str]:
        """Queue requests of every kind; returns their ids."""
        batch, hour = f"b{next(_BATCHES)}", timedelta(hours=1)
        fails_once = {"simulate": {"key": batch, "status": 503, "times": 1}}
        sent = self.client.submit_many(
            [
                *(NewRequest(id=f"{batch}-{n}", payload={"n": n}, deadline=hour) for n in range(PLAIN)),
                NewRequest(id=f"{batch}-apart", payload={"text": "x" * 300}, deadline=hour),
                NewRequest(id=f"{batch}-retried", payload=fails_once, deadline=hour),
                NewRequest(id=f"{batch}-cancelled", payload={"n": 1}, deadline=hour),
            ]
        )
        self.client.cancel(sent[-1])
        return [one.id for one in sent]

    def wait_for_claims(self, ids: list[str]) -> None:
        wait_until(lambda: self.in_flight() > 0 or self.are_done(ids), "requests in flight")

    def results(self) -> list[dict[str, Any]]:
        if self.store.type(RESULTS) != b"list":
            return []
        return [json.loads(text) for text in self.store.lrange(RESULTS, 0, -1)]

    def are_done(self, ids: list[str]) -> bool:
        """Whether each request has a result; retries become due at once."""
        with contextlib.suppress(redis.ResponseError):  # of another type now
            for member in cast("list[bytes]", self.store.zrange(RETRIES, 0, -1)):
                self.store.zadd(RETRIES, {member: 1}, xx=True)
        return self._runs() and set(ids) <= {one["id"] for one in self.results()}

    def wait_until_it_copes(self, ids: list[str], name: str) -> None:
        """Wait until all have their results, or the poller names what is missing.

        Where only requests with an offloaded payload are affected, the others must have their results.
        """
        logged = len(self.poller.output())
        others = [one for one in ids if not one.endswith("apart")]

        def copes() -> bool:
            status, text = self.ready()
            if status == 503 and name in text.lower():
                return True
            return self.are_done(ids) or (self.are_done(others) and name in self.poller.output()[logged:])

        wait_until(copes, f"a poller that copes without {name}")

    def check_results(self, ids: list[str], unsent: tuple[str, ...] = ("cancelled",)) -> None:
        """Each request has one result, of the gateway unless its id ends with one of `unsent`."""
        wait_until(lambda: self.are_done(ids) and self.left() == 0, f"results of {ids[0]} and the others")
        wait_until(lambda: self.ready()[0] == 200, "ready again, without a restart")
        results = self.results()
        self.store.delete(RESULTS)
        assert sorted(one["id"] for one in results) == sorted(ids), "each once"
        failed = [one for one in results if one.get("status_code") != 200 and not one["id"].endswith(unsent)]
        assert failed == []

    @contextlib.contextmanager
    def without(self, right: str) -> Iterator[None]:
        """Context: the poller lacks one right."""
        self.allow([rule for rule in RULES if rule != right])
        try:
            yield
        finally:
            self.allow(RULES)

    @contextlib.contextmanager
    def of_another_type(self, pattern: str, kind: str) -> Iterator[None]:
        """Context: the keys of this pattern have a type that differs from `kind`; afterwards they are restored."""
        keys = [key.decode() for key in self._run("KEYS", pattern)] if "*" in pattern else [pattern]
        for key in keys:
            self._at_once(["RENAME", key, f"aside:{key}"], ["RPUSH" if kind == "string" else "SET", key, "x"])
        try:
            yield
        finally:
            for key in keys:
                self._at_once(["DEL", key], ["RENAME", f"aside:{key}", key])

    def _at_once(self, *commands: list[str]) -> None:
        """Run all in one transaction, so that the poller writes nothing in between. A missing key is no error."""
        transaction: Any = self.store.pipeline(transaction=True)
        for command in commands:
            transaction.execute_command(*command)
        transaction.execute(raise_on_error=False)

    def used_keys(self) -> dict[str, str]:
        """The keys that the poller uses for such requests, with their types; `*` in place of an id or a digest."""
        found: dict[str, str] = {}
        with cast(Any, self.store).monitor() as monitor:
            self.check_results(self.submit())
            end = uuid.uuid4().hex
            self.store.echo(end)
            while end not in (seen := monitor.next_command())["command"]:
                name, *words = seen["command"].split(" ")
                if words and name[:1] in TYPES and name not in _OF_ANY_TYPE:
                    found[_ID.sub("*", words[0])] = TYPES[name[:1]]
        return found


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with Rig() as running:
        yield running


@pytest.mark.parametrize("right", RIGHTS)
def test_a_poller_that_loses_one_right_copes_and_loses_nothing(rig: Rig, right: str) -> None:
    ids = rig.submit()
    rig.wait_for_claims(ids)

    with rig.without(right):
        ids += rig.submit()
        rig.wait_until_it_copes(ids, right[1:].rstrip("*"))

    rig.check_results(ids)


@pytest.mark.timeout(600)
def test_a_poller_that_meets_a_key_of_another_type_copes_and_loses_nothing(rig: Rig) -> None:
    used = rig.used_keys()
    known = [*msgspec.structs.astuple(queue_keys(QUEUE)), RETRIES, RESULTS, CANCELLATIONS, "request-active:*"]
    assert set(known) - {queue_keys(QUEUE).dead} <= set(used)
    for pattern, kind in used.items():
        ids = rig.submit()
        rig.wait_for_claims(ids)
        with rig.of_another_type(pattern, kind):
            rig.wait_until_it_copes(ids, pattern.rstrip("*"))

        # A payload's key is its producer's: of another type, it is a final error of that request.
        is_payload = pattern.startswith(PAYLOAD_PREFIX)
        rig.check_results(ids, ("cancelled", "apart") if is_payload else ("cancelled",))
