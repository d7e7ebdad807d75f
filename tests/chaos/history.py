"""The checker: the records of producer, gateway and readers must be consistent.

From the pollers' logs it takes only the number of lost leases, without which a run proves nothing.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handlers.backoff import BASE_SECONDS, CAP_SECONDS
from handlers.demo.view import percentile
from tests.chaos.faults import Inflicted

RESULTS = "result-list"
NO_FAULTS = Inflicted()
LATE_SECONDS = 0.05
"""Seconds after its deadline at which a request may reach the gateway, in addition to what `Stalls` measured."""
PROCESSES_ON_THE_WAY = 3
"""Poller, handler and gateway: each may wait once for a core between the check of the deadline and the witness."""
_AT_ONCE_SECONDS = 0.01
_ASKS_AGAIN = frozenset({0, 408, 425, 429})
"""Statuses that ask for a retry, in addition to every 5xx; 0 is a connection that the gateway reset."""


@dataclass(frozen=True)
class Execution:
    """One request as the gateway saw it."""

    key: str
    started_at: float
    ended_at: float
    status: int

    @property
    def was_left(self) -> bool:
        """Whether the client disconnected before the answer."""
        return self.status == 499

    @property
    def was_gone(self) -> bool:
        """Whether the client had disconnected before the gateway read the request, so it shows no time of sending.

        A busy gateway may read a request long after the deadline at which its client has left.
        """
        return self.was_left and self.ended_at - self.started_at < _AT_ONCE_SECONDS

    @property
    def asks_again(self) -> bool:
        """Whether a retry is expected, so that the next execution is not an extra one."""
        return self.status in _ASKS_AGAIN or self.status >= 500


@dataclass(frozen=True)
class Verdict:
    """The figures of a run, for people."""

    seed: int
    faults: dict[str, int]
    requests: int
    executions: int
    executed_again: int
    in_flight_at_faults: int
    retries_spaced: int
    doubles_published: int
    lost_leases: int
    redelivery_p50: float
    redelivery_p99: float
    redelivery_worst: float
    seconds: float

    def __str__(self) -> str:
        faults = ", ".join(f"{count} x {kind}" for kind, count in sorted(self.faults.items()))
        return (
            f"seed {self.seed}: {self.requests} requests in {self.seconds:.0f} s; {faults}\n"
            f"0 lost, 0 doubled in Redis, {self.doubles_published} doubled on Pub/Sub; "
            f"{self.executions} executions, {self.executed_again} of them again "
            f"(in flight at faults: {self.in_flight_at_faults}); {self.lost_leases} lost leases logged; "
            f"{self.retries_spaced} retries after an answer, none early\n"
            f"sent again after a kill: p50 {self.redelivery_p50:.2f} s, p99 {self.redelivery_p99:.2f} s, "
            f"worst {self.redelivery_worst:.2f} s"
        )


@dataclass(frozen=True)
class History:
    """The records of producer and readers, the remaining keys, and the faults.

    `queued` are ids with their deadlines, `published` result bodies with their attributes. `stall_seconds` is the
    longest time that a process waited for a core during the run.
    """

    queued: dict[str, float]
    pushed: list[str]
    results: list[dict[str, Any]]
    published: list[tuple[str, dict[str, str]]]
    keys_left: list[str]
    refused: int
    faults: Inflicted
    began_at: float
    stall_seconds: float


def verdict(seed: int, reported: History, executions: list[Execution]) -> Verdict:
    """Check all records. Raises `AssertionError` for an inconsistency or if the run proves nothing."""
    faults = reported.faults
    assert not reported.keys_left, "keys of finished requests"
    assert reported.refused > 0, "invalid: no lost lease was logged, so the run proves nothing"
    late_seconds = LATE_SECONDS + PROCESSES_ON_THE_WAY * reported.stall_seconds
    judge_results(reported.queued, reported.results, executions, late_seconds, faults)
    duplicates = judge_published(set(reported.pushed), reported.published)
    assert duplicates <= faults.in_flight, "doubled on Pub/Sub only where a fault met a delivery"
    assert {one.key for one in executions} <= {*reported.queued, *reported.pushed}, (
        "no other program called the gateway"
    )
    again = executed_again(executions)
    assert 0 < again <= faults.in_flight, "some met a fault, and no more than were in flight at one"
    spaced = judge_spacing(executions, reported.queued, faults)
    assert spaced > 0, "invalid: no retry was checked"
    return Verdict(
        seed,
        dict(faults.counts()),
        len(reported.queued) + len(reported.pushed),
        len(executions),
        again,
        faults.in_flight,
        spaced,
        duplicates,
        reported.refused,
        *summary(redeliveries(executions, reported.queued, faults.killed_pollers_at)),
        time.time() - reported.began_at,
    )


def read_executions(witness: Path) -> list[Execution]:
    """The gateway's records in order of their start."""
    lines = (json.loads(text) for text in witness.read_text().splitlines(keepends=True) if text.endswith("\n"))
    found = [Execution(one["key"], one["started_at"], one["ended_at"], one["status"]) for one in lines]
    return sorted(found, key=lambda one: one.started_at)


def judge_results(
    ids: dict[str, float],
    results: list[dict[str, Any]],
    executions: list[Execution],
    late_seconds: float = LATE_SECONDS,
    faults: Inflicted = NO_FAULTS,
) -> None:
    """I1, I2, I3, I4, I9 for results in Redis; `ids` maps to deadlines."""
    assert Counter(result["id"] for result in results) == Counter(ids.keys()), "one result for each, no other"
    answered = {one.key for one in executions if one.status == 200}
    for result in results:
        if result.get("status_code") == 200:
            assert result["id"] in answered, "no success that the gateway did not see"
        else:
            assert result.get("error_code") or result.get("status_code"), "a recorded reason"
    for one in executions:
        deadline = ids.get(one.key)
        if deadline is not None and not one.was_gone:
            late = one.started_at - deadline - faults.held_up_seconds(deadline)
            assert late <= late_seconds, f"sent {late:.2f} s after its deadline: {one}"


def judge_published(ids: set[str], published: list[tuple[str, dict[str, str]]]) -> int:
    """I2 for Pub/Sub: every id has a result, and duplicates have one dedupe key; returns their number."""
    by_id: dict[str, list[str]] = defaultdict(list)
    for body, attributes in published:
        assert attributes["id"] == json.loads(body)["id"]
        by_id[attributes["id"]].append(attributes["pubsub_message_id"])
    assert set(by_id) == ids, "every id, no other"
    assert all(len(set(keys)) == 1 for keys in by_id.values()), "all copies have one dedupe key"
    return sum(len(keys) - 1 for keys in by_id.values())


def judge_spacing(executions: list[Execution], deadlines: dict[str, float], faults: Inflicted) -> int:
    """I12: no queued request is sent too early after an answer that asks for a retry.

    Returns the number of checked retries. The n-th retry waits for at least half of the n-th backoff. If a fault met
    the owner while it had the answer, the request may have returned with the owner's lease: that retry is not
    checked.
    """
    searched = 0
    for key, attempts in _by_key(executions).items():
        if key not in deadlines:
            continue  # pushed: the subscription decides when it returns
        least = BASE_SECONDS / 2
        for before, after in itertools.pairwise(attempts):
            if not before.asks_again or faults.met_owner(before.started_at, before.ended_at):
                continue
            gap = after.started_at - before.ended_at
            assert gap >= least, f"{key} came back after {gap:.3f} s, not {least:g} s"
            searched += 1
            if deadlines[key] - before.ended_at > 2 * CAP_SECONDS:  # otherwise the deadline shortens it
                least = min(2 * least, CAP_SECONDS / 2)
    return searched


def executed_again(executions: list[Execution]) -> int:
    """Executions without a result: their client disconnected, or they were answered again."""
    again = 0
    for attempts in _by_key(executions).values():
        served = [one for one in attempts if not one.asks_again]
        again += max(0, len(served) - 1)
    return again


def redeliveries(executions: list[Execution], queued: Iterable[str], kills: list[float]) -> list[float]:
    """Seconds from the kill of a poller to the next start of each request that it held."""
    return [started_at - killed_at for _, killed_at, started_at in left_and_sent(executions, queued, kills)]


def left_and_sent(
    executions: list[Execution], queued: Iterable[str], kills: list[float]
) -> Iterator[tuple[str, float, float]]:
    """Each request that a kill left: its id, the time of the kill, and its next start."""
    by_key = _by_key(executions)
    for key in queued:
        for before, after in itertools.pairwise(by_key.get(key, [])):
            killed = [at for at in kills if -0.1 <= before.ended_at - at <= 0.3]
            if before.was_left and killed:
                yield key, killed[0], after.started_at


def summary(found: list[float]) -> tuple[float, float, float]:
    """Median, 99th percentile and maximum; zeros without values."""
    return (percentile(found, 0.5), percentile(found, 0.99), max(found)) if found else (0.0, 0.0, 0.0)


def _by_key(executions: list[Execution]) -> dict[str, list[Execution]]:
    by_key: dict[str, list[Execution]] = defaultdict(list)
    for one in executions:
        by_key[one.key].append(one)
    return by_key
