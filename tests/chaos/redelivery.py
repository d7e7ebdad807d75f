"""Time until a killed poller's requests are sent again, with the default leases (L1).

Measured from the crash of a request's last owner. If the next owner is killed too, its lease counts separately.
"""

from __future__ import annotations

import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from handlers.redis_store.queue.queue import QueueOptions
from tests.chaos.fleet import DEFAULT_LEASES, Fleet
from tests.chaos.history import judge_results, left_and_sent, read_executions, summary
from tests.chaos.leases import Leases, sent_again
from tests.chaos.pushing import Pushing
from tests.chaos.reading import QUEUE, ResultReader, store_client
from tests.chaos.run import request_body
from tests.waiting import elapse, wait_until

DEFAULT_LEASE_SECONDS = QueueOptions("", "").lease_seconds
P99_SECONDS, WORST_SECONDS = 18.0, 20.0
_EACH = 100
_HELD = 16


@dataclass(frozen=True)
class Redelivery:
    """Seconds from the crash of the last owner to the next execution; `most_leases` of one request."""

    kills: int
    found: int
    p50: float
    p99: float
    worst: float
    most_leases: int

    def __str__(self) -> str:
        return (
            f"{self.kills} SIGKILLs with default leases, {self.found} requests sent again: p50 {self.p50:.2f} s, "
            f"p99 {self.p99:.2f} s, worst {self.worst:.2f} s per lease, "
            f"at most {self.most_leases} leases for one request"
        )


def run_redelivery(folder: Path, seed: int, kills: int) -> Redelivery:
    """Kill one of three pollers per second. Raises `AssertionError` if a request returns too late."""
    chance, deadline = random.Random(seed), float(int(time.time()) + 86_400)
    names = [f"l-{seed}-{n}" for n in range(kills * _EACH)]
    killed_at = []
    with (
        Pushing(seed) as pushing,
        Fleet(folder, pushing.host, pollers=3, handlers=2, settings=DEFAULT_LEASES) as fleet,
        store_client(fleet.redis_url) as redis,
        Leases(redis) as leases,
    ):
        for at in range(kills):
            some = names[at * _EACH : (at + 1) * _EACH]
            # Later requests have later deadlines, so that a returned request waits only for its lease.
            redis.zadd(QUEUE, {request_body(name, deadline + at): deadline + at for name in some})
            wait_until(lambda: fleet.in_flight() >= _HELD, "requests to be killed with their poller")
            killed_at.append(time.time())
            fleet.end_poller(chance.randrange(3), signal.SIGKILL)
            elapse(1.0, "the next poller meets requests of its own")
        reader = ResultReader(redis)
        reader.wait_until_drained(len(names))
    executions = read_executions(fleet.witness)
    judge_results(dict.fromkeys(names, deadline), reader.results, executions)
    again = [
        sent_again(list(leases.by_id.get(name, {}).values()), killed, started_at, killed_at, DEFAULT_LEASE_SECONDS)
        for name, killed, started_at in left_and_sent(executions, names, killed_at)
    ]
    found = [one.seconds for one in again]
    p50, p99, worst = summary(found)
    assert found, "no kill met a request"
    assert p99 <= P99_SECONDS, f"p99 {p99:.2f} s"
    assert worst <= WORST_SECONDS, f"worst {worst:.2f} s"
    return Redelivery(kills, len(found), p50, p99, worst, max(one.leases for one in again))
