"""The judge: what the producer queued, what the gateway saw and what came out must fit together.

Nothing here is read from the log of a poller but the number of stale words refused, without which a run has
proved nothing.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handlers.demo.tally import percentile
from tests.chaos.faults import Inflicted

LATE_SECONDS = 0.05
"""How far past its deadline a request may be seen to begin: two processes, one clock."""
LEAST_RETRY_SECONDS = 0.5
"""The shortest pause that anything but the death of an owner puts between an answer and the next attempt."""


@dataclass(frozen=True)
class Execution:
    """One request as the gateway saw it; 0 and 499: its client left."""

    key: str
    started_at: float
    ended_at: float
    status: int

    @property
    def was_left(self) -> bool:
        return self.status in (0, 499)


@dataclass(frozen=True)
class Verdict:
    """What a run showed, for a person."""

    seed: int
    faults: dict[str, int]
    requests: int
    executions: int
    executed_again: int
    in_flight_at_faults: int
    doubles_published: int
    stale_refused: int
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
            f"(in flight at faults: {self.in_flight_at_faults}); {self.stale_refused} stale words refused\n"
            f"sent again after a kill: p50 {self.redelivery_p50:.2f} s, p99 {self.redelivery_p99:.2f} s, "
            f"worst {self.redelivery_worst:.2f} s"
        )


def read_executions(witness: Path) -> list[Execution]:
    """What the gateway wrote, in the order of the beginnings."""
    lines = (json.loads(text) for text in witness.read_text().splitlines())
    found = [Execution(one["key"], one["started_at"], one["ended_at"], one["status"]) for one in lines]
    return sorted(found, key=lambda one: one.started_at)


def judge_results(ids: dict[str, float], results: list[dict[str, Any]], executions: list[Execution]) -> None:
    """I1, I2, I3, I4, I9 for the results in Redis; `ids` with their deadlines."""
    assert Counter(result["id"] for result in results) == Counter(ids.keys()), "one result for each, no other"
    answered = {one.key for one in executions if one.status == 200}
    for result in results:
        if result.get("status_code") == 200:
            assert result["id"] in answered, "no success that the gateway did not see"
        else:
            assert result.get("error_code") or result.get("status_code"), "a recorded reason"
    for one in executions:
        deadline = ids.get(one.key)
        assert deadline is None or one.started_at <= deadline + LATE_SECONDS, "sent after its deadline"


def judge_published(ids: set[str], published: list[tuple[str, dict[str, str]]]) -> int:
    """I2 for Pub/Sub: every id at least once, and what is doubled can be told; returns how many were."""
    by_id: dict[str, list[str]] = defaultdict(list)
    for body, attributes in published:
        assert attributes["id"] == json.loads(body)["id"]
        by_id[attributes["id"]].append(attributes["pubsub_message_id"])
    assert set(by_id) == ids, "every id, no other"
    assert all(len(set(keys)) == 1 for keys in by_id.values()), "all copies have one dedupe key"
    return sum(len(keys) - 1 for keys in by_id.values())


def judge_spacing(executions: list[Execution], faults: Inflicted) -> int:
    """I12: after an answer that asks for a retry, no attempt comes early; returns how many gaps were looked at.

    Where a fault fell between the two, the death of an owner may have brought the request back sooner.
    """
    times = sorted(at for at, _ in faults.at)
    looked = 0
    for attempts in _by_key(executions).values():
        for before, after in itertools.pairwise(attempts):
            if before.was_left or before.status < 500:
                continue
            gap = after.started_at - before.ended_at
            looked += 1
            if not any(before.started_at - 3 <= at <= after.started_at for at in times):
                assert gap >= LEAST_RETRY_SECONDS, f"{before.key} came back after {gap:.3f} s"
    return looked


def executed_again(executions: list[Execution]) -> int:
    """Executions that gave no result: left by their client, or answered once more."""
    again = 0
    for attempts in _by_key(executions).values():
        served = [one for one in attempts if one.was_left or one.status < 500]
        again += max(0, len(served) - 1)
    return again


def redeliveries(executions: list[Execution], queued: Iterable[str], kills: list[float]) -> list[float]:
    """Seconds from the kill of a poller to the next beginning of each queued request that it left."""
    found, by_key = [], _by_key(executions)
    for attempts in (by_key[key] for key in queued if key in by_key):
        for before, after in itertools.pairwise(attempts):
            killed = [at for at in kills if -0.1 <= before.ended_at - at <= 0.3]
            if before.was_left and killed:
                found.append(after.started_at - killed[0])
    return found


def summary(found: list[float]) -> tuple[float, float, float]:
    """Median, 99th percentile and maximum; zeros for nothing."""
    return (percentile(found, 0.5), percentile(found, 0.99), max(found)) if found else (0.0, 0.0, 0.0)


def _by_key(executions: list[Execution]) -> dict[str, list[Execution]]:
    by_key: dict[str, list[Execution]] = defaultdict(list)
    for one in executions:
        by_key[one.key].append(one)
    return by_key
