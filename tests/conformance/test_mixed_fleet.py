"""Our pollers and another processor on one queue, killed and stopped: one result per request."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

from handlers.demo.servers import Child
from handlers.demo.valkey import Valkey, find_valkey
from tests.conformance.second_consumer import OWNER_PREFIX
from tests.servers.forked import COMMAND, ForkedChild, running_gateway
from tests.waiting import elapse, wait_until

COUNT = 400
QUEUE, RESULTS, RETRIES = "request-sortedset", "result-list", "retry-sortedset"
OWN_RESULTS = "own-results"
DEADLINE = int(time.time()) + 86_400
LEASE_SECONDS = 60
"""The test ends leases."""
STARTED = ('"event":"polling"', "consuming")
"""What our poller and the other processor print once they claim."""
SECOND = str(Path(__file__).with_name("second_consumer.py"))
CANCEL = """
local token = redis.call('GET', KEYS[1])
if token then redis.call('SET', KEYS[2], token, 'EX', 600) end
return token and 1 or 0
"""
END_LEASES = """
for _, claim in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local owner = redis.call('HGET', KEYS[2], claim) or ''
  if ARGV[1] == '' or owner:sub(1, #ARGV[1]) ~= ARGV[1] then redis.call('ZADD', KEYS[1], 1, claim) end
end
"""
Start = Callable[[], Child]


class Fleet:
    """Two of our pollers, two other processors (which `drops` or `keeps` claims at a retry), a failing gateway."""

    def __init__(self, parts: ExitStack, at_a_retry: str, failing: float) -> None:
        self.url = parts.enter_context(Valkey(find_valkey())).url
        self.store = parts.enter_context(redis.Redis.from_url(self.url, socket_timeout=60))
        self._at_a_retry = at_a_retry
        # The crash of one that keeps its claim at a retry may end a request twice.
        self._untouched_owners = OWNER_PREFIX if at_a_retry == "keeps" else ""
        faulty = running_gateway("--time-to-first-token", "0.3", "--fault", f"503={failing}")
        self._gateway_url = parts.enter_context(faulty)
        self.kinds: list[Start] = [self._ours, self._theirs, self._ours, self._theirs]
        self.processes = [start() for start in self.kinds]
        parts.callback(self.stop)

    def _ours(self) -> Child:
        settings = {
            "LEASE_SECONDS": str(LEASE_SECONDS),
            "HEARTBEAT_SECONDS": "0.4",
            "RECLAIM_SECONDS": "0.3",
            "WORKERS": "12",
        }
        where = {
            "REDIS_URL": self.url,
            "IGW_BASE_URL": self._gateway_url,
            "METRICS_PORT": "0",
            "MAX_DEATHS": "100",
        }
        return ForkedChild("poller", [COMMAND, "poll"], {**settings, **where})

    def _theirs(self) -> Child:
        where = [self.url, QUEUE, self._gateway_url, self._at_a_retry]
        return Child("second consumer", [sys.executable, SECOND, *where])

    def wait_until_started(self) -> None:
        """Wait until each process claims or is about to."""
        for one in self.processes:
            one.wait_for(lambda output: output if any(line in output for line in STARTED) else None, 240)

    def wait_until_both_work(self) -> None:
        """Wait until both sides hold a claim, or all is settled."""

        def sides() -> set[bool]:
            owners: Any = self.store.hvals(f"{QUEUE}:claim-owners")
            return {owner.startswith(OWNER_PREFIX.encode()) for owner in owners}

        wait_until(lambda: len(sides()) == 2 or self.is_settled(), "both at work, or done", timeout_seconds=120)

    def kill(self, at: int) -> None:
        """Kill one with SIGKILL and start another."""
        ended = self.processes[at % len(self.processes)]
        ended.process.send_signal(signal.SIGKILL)
        ended.process.wait(60)
        ended.stop()
        self._end_leases()
        self.processes[at % len(self.processes)] = self.kinds[at % len(self.kinds)]()

    def halt(self, at: int) -> None:
        """Stop one until others have its requests; then it continues."""
        halted = self.processes[at % len(self.processes)].process
        halted.send_signal(signal.SIGSTOP)
        self._end_leases()
        wait_until(lambda: self.store.zcount(f"{QUEUE}:claims-idx", 1, 1) == 0, "others to take what it held")
        halted.send_signal(signal.SIGCONT)

    def _end_leases(self) -> None:
        """End all leases now, those of live processes too; these renew theirs or lose them."""
        self.store.eval(END_LEASES, 2, f"{QUEUE}:claims-idx", f"{QUEUE}:claim-owners", self._untouched_owners)

    def is_settled(self) -> bool:
        """Whether nothing waits and nothing is claimed."""
        held = (QUEUE, f"{QUEUE}:claimed", f"{QUEUE}:claim-owners", f"{QUEUE}:claims-idx", RETRIES)
        return not self.store.exists(*held)

    def results(self) -> list[dict[str, Any]]:
        """The results of the shared list and of the list that some requests name."""
        texts: Any = [*self.store.lrange(RESULTS, 0, -1), *self.store.lrange(OWN_RESULTS, 0, -1)]
        return [json.loads(text) for text in texts]

    def stop(self) -> None:
        for one in self.processes:
            one.process.kill()
            one.stop()


@pytest.fixture
def parts() -> Iterator[ExitStack]:
    with ExitStack() as running:
        yield running


# Members of producers of all generations, seven kinds in turn.
BARE, QUOTED, PLAIN, TOKEN, OWN_LIST, OFFLOADED, TAKEN_BACK = range(7)


def kind_of(number: int) -> int:
    return number % 7


def is_gone(number: int) -> bool:
    """Whether the offloaded payload was lost."""
    return kind_of(number) == OFFLOADED and number % 35 == OFFLOADED


def token_of(number: int) -> str:
    return f"t-{number}" if kind_of(number) in (TOKEN, OWN_LIST, OFFLOADED, TAKEN_BACK) else ""


def queue_it(store: Any, number: int) -> None:
    """Queue one request like its producer; some are cancelled before they can be claimed."""
    name, kind, token = f"m{number}", kind_of(number), token_of(number)
    payload = {"prompt": "x", "max_tokens": 1}
    body: dict[str, object] = {"id": name, "deadline": DEADLINE, "payload": payload}
    internal: dict[str, object] = {}
    score = float(DEADLINE)
    if kind == QUOTED:
        body["deadline"] = str(DEADLINE)
    if token:
        internal = {"request_token": token, "enqueue_seq": number}
        score += number / 2**21
        store.set(f"request-active:{name}", token, exat=DEADLINE)
    if kind == OWN_LIST:
        internal |= {"result_queue_name": OWN_RESULTS, "result_ttl_seconds": 600}
    if kind == OFFLOADED:
        internal["payload_ref"] = f"request-payload:{name}:{token}"
        body["payload"] = None
        if not is_gone(number):
            store.set(internal["payload_ref"], json.dumps(payload), ex=600)
    if kind == TAKEN_BACK:
        store.set(f"request-cancel:{name}", token, ex=600)
    whole = body if kind in (BARE, QUOTED) else {"internal": internal, "request_kind": "redis", "data": body}
    store.zadd(QUEUE, {json.dumps(whole): score})


def cancel(store: Any, number: int) -> None:
    """Cancel a live request like the reference's producers, in any state."""
    store.eval(CANCEL, 2, f"request-active:m{number}", f"request-cancel:m{number}")


def check(fleet: Fleet, count: int, cancelled: set[int]) -> None:
    """Check that each request has one correct result in the right list, and no keys are left."""
    results = fleet.results()
    assert Counter(result["id"] for result in results) == Counter(f"m{number}" for number in range(count))
    by_id = {result["id"]: result for result in results}
    for number in range(count):
        result = by_id[f"m{number}"]
        found = result.get("error_code") or result["status_code"]
        expected: set[object] = {200}
        if is_gone(number):
            expected = {"PAYLOAD_UNAVAILABLE"}
        elif kind_of(number) == TAKEN_BACK:
            expected = {"CANCELLED"}
        if number in cancelled:
            expected.add("CANCELLED")
        assert found in expected, result
        assert result.get("request_token", "") == token_of(number)
    own: Any = fleet.store.llen(OWN_RESULTS)
    assert own == sum(kind_of(number) == OWN_LIST for number in range(count))
    sides = Counter(result.get("answered_by", "ours") for result in results)
    assert min(sides["ours"], sides["second"]) > 0, "both had their part; how large it is depends on their speed"
    left = [key for kind in ("active", "cancel", "payload") for key in fleet.store.scan_iter(f"request-{kind}:*")]
    assert left == [], "what was a submission's own goes with its result"


@pytest.mark.timeout(600)
def test_a_mixed_fleet_answers_every_request_once(parts: ExitStack) -> None:
    """Both sides are killed and stopped at any point of a request, with cancellations."""
    fleet, cancelled = Fleet(parts, "drops", 0.1), set[int]()
    for begin in range(0, COUNT, 100):
        fleet.wait_until_started()
        for number in range(begin, begin + 100):
            queue_it(fleet.store, number)
        fleet.wait_until_both_work()
        elapse(0.2, "kills meet requests at any point of their way")
        fleet.kill(begin // 100)
        for number in range(begin, begin + 100, 9):
            if kind_of(number) == TOKEN:
                cancel(fleet.store, number)
                cancelled.add(number)
        fleet.halt(begin // 100 + 1)
    wait_until(lambda: len(fleet.results()) >= COUNT, "all results", timeout_seconds=120)
    wait_until(fleet.is_settled, "nothing is held")
    check(fleet, COUNT, cancelled)


@pytest.mark.timeout(600)
def test_retries_cross_to_a_processor_that_keeps_its_claims_and_back(parts: ExitStack) -> None:
    """The other processor renews its claim during the wait. Only ours are killed: its own crash may end such a
    request twice.
    """
    fleet, count = Fleet(parts, "keeps", 0.2), 120
    for begin in range(0, count, 40):
        fleet.wait_until_started()
        for number in range(begin, begin + 40):
            queue_it(fleet.store, number)
        fleet.wait_until_both_work()
        elapse(0.2, "kills meet requests at any point of their way")
        fleet.kill(0)
        fleet.halt(2)
    wait_until(lambda: len(fleet.results()) >= count, "all results", timeout_seconds=180)
    wait_until(fleet.is_settled, "no claim is kept for what has ended")
    check(fleet, count, set())
