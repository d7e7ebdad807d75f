"""What pollers leave for those who look: true counts, bounded, expiring, of all pollers together."""

from __future__ import annotations

import time

import pytest
from redis.asyncio import Redis

from handlers.contract.request import Request
from handlers.contract.result import ErrorCode, answered_result, error_result
from handlers.forward.outcome import Answered, Outcome, Retry
from handlers.poller.journal import Journal
from handlers.redis_store.activity import MOST_FAILURES, PREFIX, PollerReport, read_activity
from handlers.telemetry.activity_counts import ActivityCounts
from handlers.telemetry.metrics import Metrics


class OnePoller:
    """A journal and the metrics it reads."""

    def __init__(self, store: Redis, poller_id: str) -> None:
        metrics = Metrics()
        self.queue = metrics.of_queue("q", "q", "default")
        self.at = time.time()

        def report(now: float) -> PollerReport:
            return PollerReport(poller_id=poller_id, host="a host", started_at=0, at=now)

        self.journal = Journal(store, ActivityCounts(metrics), report, lambda: self.at)


def request(request_id: str = "r", attempt: int = 0) -> Request:
    return Request(id=request_id, deadline=2e9, payload=b'{"secret": 1}', queue="q", attempt=attempt)


async def test_the_counts_of_all_pollers_add_up_and_none_counts_twice(store: Redis) -> None:
    one, two = OnePoller(store, "one"), OnePoller(store, "two")
    for poller in (one, two):
        poller.queue.answered(200, "", 0)
        poller.queue.timed(0.004, 60)
        await poller.journal.tick()
    one.queue.answered(500, "", 0)
    one.queue.retried("rejected")
    await one.journal.tick()
    await one.journal.tick()
    found = await read_activity(store, one.at)
    counts = found.minutes[-1]["q"]
    assert (counts["success"], counts["failed"], counts["retry"]) == (2, 1, 1)
    assert sum(number for name, number in counts.items() if name.startswith("le:")) == 2
    assert [poller.poller_id for poller in found.pollers] == ["one", "two"]


async def test_what_could_not_be_written_is_written_next_time(
    store: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    poller = OnePoller(store, "one")
    poller.queue.answered(200, "", 0)
    poller.journal.note(request(), Retry(1.0, "rejected"))
    await store.set(f"{PREFIX}:failures", "of another type")
    with pytest.raises(Exception, match="WRONGTYPE"):
        await poller.journal.tick()
    await store.flushall()
    await poller.journal.tick()
    found = await read_activity(store, poller.at)
    assert found.minutes[-1]["q"]["success"] == 1
    assert [failure.reason for failure in found.failures] == ["rejected"]


@pytest.mark.parametrize(
    ("outcome", "kept"),
    [
        (Answered(answered_result("r", "", 200, b"{}")), []),
        (Answered(answered_result("r", "", 404, b"{}")), [("failed", "answered", 404)]),
        (
            Answered(error_result("r", "", ErrorCode.DEADLINE_EXCEEDED, "late")),
            [("expired", "DEADLINE_EXCEEDED", 0)],
        ),
        (Retry(1.0, "timeout"), [("retry", "timeout", 0)]),
        (Retry(1.0, "gate_closed", counts_attempt=False), []),
    ],
)
async def test_attempts_without_success_are_kept(
    store: Redis, outcome: Outcome, kept: list[tuple[str, str, int]]
) -> None:
    poller = OnePoller(store, "one")
    poller.journal.note(request(), outcome)
    await poller.journal.tick()
    found = await read_activity(store, poller.at)
    assert [(one.outcome, one.reason, one.status) for one in found.failures] == kept


async def test_a_storm_leaves_little_everything_expires_and_no_payload_is_in_it(store: Redis) -> None:
    poller = OnePoller(store, "one")
    for tick in range(6):
        for number in range(200):
            poller.journal.note(request(f"{tick}-{number}" * 200), Retry(1.0, "rejected"))
        await poller.journal.tick()
    found = await read_activity(store, poller.at)
    assert len(found.failures) == MOST_FAILURES
    async for key in store.scan_iter():
        assert key.startswith(PREFIX.encode()) and (await store.ttl(key) or 0) > 0
        assert b"secret" not in (await store.dump(key) or b"secret")
        assert (await store.memory_usage(key) or 200_000) < 200_000
