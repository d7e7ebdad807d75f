"""What pollers leave for those who look: counts by the minute, the latest failures, who polls behind which gates.

async-processor:activity:<minute>      hash    ours: queue NUL count -> number, all pollers together; <minute> is
                                               Unix seconds / 60; expires 65 minutes after its last count
async-processor:activity:failures      list    ours: the latest attempts without success (JSON), newest first,
                                               at most `MOST_FAILURES`; expires a day after the last one
async-processor:activity:pollers       zset    ours: poller id, score = last seen, Unix seconds; expires
async-processor:activity:poller:<id>   string  ours: a poller's pools and gates (JSON); expires in 20 seconds

Figures for the eye, not for the books: a write whose reply was lost is written again. No payload is in any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from handlers.redis_store.connection import Store, executed

PREFIX: Final = "async-processor:activity"
FAILURES: Final = f"{PREFIX}:failures"
POLLERS: Final = f"{PREFIX}:pollers"
MOST_FAILURES: Final = 200
MINUTES: Final = 60
"""How far back the charts go."""

_MINUTE_EXPIRES_SECONDS: Final = 65 * 60
_FAILURES_EXPIRE_SECONDS: Final = 86_400
_POLLER_EXPIRES_SECONDS: Final = 20
_MOST_POLLERS: Final = 200

Counts = dict[str, dict[str, int]]
"""By queue: what was counted. `success`, `failed`, `expired`, `retry`, and `le:<ms>`, the latency's buckets."""


class Failure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One attempt without success; `outcome` is `retry`, `failed` or `expired`; `at` is Unix seconds."""

    at: float
    queue: str
    id: str
    attempt: int
    outcome: str
    reason: str
    status: int = 0


class GateReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A gate as `GateState` has it; `queue` is empty for the gate of a pool."""

    gate_type: str
    queue: str = ""
    pool: str = ""
    label: str = ""
    budget: float = 1.0
    value: float | None = None
    threshold: float | None = None
    is_source_available: bool = True
    on_missing: str = ""
    why_closed: str = ""


class PoolReport(msgspec.Struct, frozen=True, kw_only=True):
    """One pool of one poller: its slots, how many are in use, and what part of them its gates allow."""

    pool_id: str
    slots: int
    in_flight: int
    budget: float


class PollerReport(msgspec.Struct, frozen=True, kw_only=True):
    """One poller at one moment; instants are Unix seconds."""

    poller_id: str
    host: str
    started_at: float
    at: float
    pools: tuple[PoolReport, ...] = ()
    gates: tuple[GateReport, ...] = ()


class Activity(msgspec.Struct, frozen=True, kw_only=True):
    """All that was left: counts of the last hour, oldest minute first, failures newest first."""

    minutes: tuple[Counts, ...]
    failures: tuple[Failure, ...]
    pollers: tuple[PollerReport, ...]


_failure_decoder = msgspec.json.Decoder(Failure)
_poller_decoder = msgspec.json.Decoder(PollerReport)


def minute_key(at: float) -> str:
    """HASH: the counts of the minute of `at`, Unix seconds."""
    return f"{PREFIX}:{int(at // 60)}"


def poller_key(poller_id: str) -> str:
    """STRING: what a poller says of itself."""
    return f"{PREFIX}:poller:{poller_id}"


async def write_activity(
    redis: Store, report: PollerReport, counts: Mapping[str, Mapping[str, int]], failures: Sequence[Failure]
) -> None:
    """Add to what all pollers left, in one round trip. Raises one of `STORE_FAILURES`."""
    pipeline = redis.pipeline(transaction=False)
    minute = minute_key(report.at)
    added = [(f"{queue}\0{name}", n) for queue, of in counts.items() for name, n in of.items() if n]
    for field, count in added:
        pipeline.hincrby(minute, field, count)
    if added:
        pipeline.expire(minute, _MINUTE_EXPIRES_SECONDS)
    if failures:
        pipeline.lpush(FAILURES, *(msgspec.json.encode(one) for one in failures))
        pipeline.ltrim(FAILURES, 0, MOST_FAILURES - 1)
        pipeline.expire(FAILURES, _FAILURES_EXPIRE_SECONDS)
    pipeline.set(poller_key(report.poller_id), msgspec.json.encode(report), ex=_POLLER_EXPIRES_SECONDS)
    pipeline.zadd(POLLERS, {report.poller_id: report.at})
    pipeline.zremrangebyscore(POLLERS, "-inf", report.at - 3 * _POLLER_EXPIRES_SECONDS)
    pipeline.expire(POLLERS, 3 * _POLLER_EXPIRES_SECONDS)
    await executed(redis, pipeline)


async def read_activity(redis: Store, now: float) -> Activity:
    """What pollers left, in two round trips; `now` is Unix seconds. Raises one of `STORE_FAILURES`."""
    pipeline = redis.pipeline(transaction=False)
    for minutes_ago in reversed(range(MINUTES)):
        pipeline.hgetall(minute_key(now - 60 * minutes_ago))
    pipeline.lrange(FAILURES, 0, MOST_FAILURES - 1)
    pipeline.zrevrange(POLLERS, 0, _MOST_POLLERS - 1)
    *minutes, failures, poller_ids = await executed(redis, pipeline)
    return Activity(
        minutes=tuple(_counts(minute) for minute in minutes),
        failures=tuple(_failure_decoder.decode(text) for text in failures),
        pollers=await _pollers(redis, [one.decode() for one in poller_ids]),
    )


async def _pollers(redis: Store, poller_ids: Sequence[str]) -> tuple[PollerReport, ...]:
    if not poller_ids:
        return ()
    pipeline = redis.pipeline(transaction=False)
    for poller_id in poller_ids:
        pipeline.get(poller_key(poller_id))
    found = [_poller_decoder.decode(text) for text in await executed(redis, pipeline) if text is not None]
    return tuple(sorted(found, key=lambda one: (one.host, one.poller_id)))


def _counts(minute: Mapping[bytes, bytes]) -> Counts:
    counts: Counts = {}
    for field, number in minute.items():
        queue, _, name = field.decode("utf-8", "replace").rpartition("\0")
        counts.setdefault(queue, {})[name] = int(number)
    return counts
