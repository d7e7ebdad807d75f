"""Compute the figures of a run from the gateway's witness log and the real-time sender's clock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from handlers.demo.view import WitnessLine, percentile
from tests.bench.slack.profile import Profile
from tests.bench.slack.run import Record

GRID_SECONDS = 0.05
_SMOOTH = 10  # steps of the grid: half a second
_GIVEN_WAY = 1.1  # of the average that the new load leaves over; a Poisson load varies by more than that
_REFILLED = 0.9


@dataclass(frozen=True, slots=True)
class Use:
    """Slots in use on a grid of `GRID_SECONDS`; `done` is the part of `queued` that finished."""

    capacity: list[int]
    real_time: list[int]
    queued: list[int]
    done: list[int]


@dataclass(frozen=True, slots=True)
class Figures:
    """Fractions are 0 to 1, times are seconds; None if not measured."""

    used: float | None
    finished: float | None
    p50: float
    p99: float
    real_time_failures: int
    refused: int
    evicted: int
    gives_way: float | None
    refills: float | None
    past_deadline: int


def use_of(record: Record) -> Use:
    """The slots in use by each kind of request over time."""
    steps = round(record.profile.seconds / GRID_SECONDS)
    real_time, queued, done = [0] * steps, [0] * steps, [0] * steps
    for line in record.witness:
        if line.admitted_at is None:
            continue
        first = max(0, round((line.admitted_at - record.started_at) / GRID_SECONDS))
        last = min(steps, round((line.ended_at - record.started_at) / GRID_SECONDS))
        kinds = [real_time] if line.key.startswith("r") else [queued]
        if kinds[0] is queued and line.status == 200:
            kinds.append(done)
        for kind in kinds:
            for step in range(first, last):
                kind[step] += 1
    capacity = [record.profile.capacity_at(step * GRID_SECONDS) for step in range(steps)]
    return Use(capacity, real_time, queued, done)


def figures_of(record: Record) -> Figures:
    """The figures, without the first phase."""
    use, profile = use_of(record), record.profile
    warm = profile.phases[0].seconds
    # Requests in flight at the end have no line yet, so the longest possible request before the end is left out too.
    span = slice(round(warm / GRID_SECONDS), round((profile.seconds - 2) / GRID_SECONDS))
    idle = sum(max(0, c - r) for c, r in zip(use.capacity[span], use.real_time[span], strict=True))
    answered = [one.seconds for one in record.real_time if one.at >= warm and one.status == 200]
    failures = sum(one.status != 200 for one in record.real_time)
    queued = [line for line in record.witness if line.key.startswith("q")]
    refused = [line for line in queued if line.status == 429]
    has_queue = record.setup.has_queue
    return Figures(
        used=sum(use.queued[span]) / idle if has_queue else None,
        finished=sum(use.done[span]) / idle if has_queue else None,
        p50=percentile(answered, 0.5),
        p99=percentile(answered, 0.99),
        real_time_failures=failures,
        refused=sum(line.admitted_at is None for line in refused),
        evicted=_evictions(refused),
        gives_way=_until(use.queued, profile, "step up", is_up=True) if has_queue else None,
        refills=_until(use.queued, profile, "step down", is_up=False) if has_queue else None,
        past_deadline=record.past_deadline,
    )


def _evictions(refused: Iterable[WitnessLine]) -> int:
    return sum(line.admitted_at is not None for line in refused)


def _until(queued: list[int], profile: Profile, name: str, *, is_up: bool) -> float | None:
    """Seconds from a step until the smoothed use of queued requests matches the slots that the new load leaves."""
    if all(phase.name != name for phase in profile.phases):
        return None
    at = profile.start_of(name)
    left = profile.slots * (1 - profile.at(at).load)
    begin = round(at / GRID_SECONDS)
    for step in range(begin, len(queued)):
        mean = sum(queued[step : step + _SMOOTH]) / max(1, len(queued[step : step + _SMOOTH]))
        if mean <= left * _GIVEN_WAY if is_up else mean >= left * _REFILLED:
            return (step - begin) * GRID_SECONDS
    return None
