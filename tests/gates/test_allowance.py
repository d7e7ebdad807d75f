"""Budgets become concurrency limits: never more than allowed, and some progress for any budget."""

from __future__ import annotations

import math
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from handlers.gates.allowance import Allowance, ProcessShare
from handlers.gates.gate import Share
from tests.gates.building import Clock

PARTS = st.floats(0, 1)
SLOTS = st.integers(1, 500)


class Pool:
    """An allowance whose share and clock a test moves."""

    def __init__(self, slots: int, share: Share, lag: float = 10.0) -> None:
        self.clock = Clock()
        self.shares = (share,)
        self.lag = lag
        self.allowance = Allowance(slots, self.lagging, clock=self.clock)

    def lagging(self) -> tuple[Share, ...]:
        """The shares of the moment, of a metric with the pool's lag."""
        return tuple(replace(share, lag_seconds=self.lag) for share in self.shares)


@given(PARTS, SLOTS)
def test_a_burst_never_uses_more_than_its_share_of_the_slots(part: float, slots: int) -> None:
    """The room with one reading, however often it is read."""
    pool = Pool(slots, Share(part))
    for _ in range(5):
        pool.allowance.started(pool.allowance.room())
    assert pool.allowance.in_use <= max(1, math.floor(part * slots + 1e-6))
    assert pool.allowance.in_use >= math.floor(part * slots - 1e-6)


@given(SLOTS)
def test_an_idle_pool_gets_all_its_slots(slots: int) -> None:
    assert Pool(slots, Share(1.0)).allowance.room() == slots


@given(SLOTS, st.sampled_from([0.0, -0.5, math.nan]))
def test_a_closed_gate_admits_no_request(slots: int, part: float) -> None:
    for headroom in (None, 0.0, -0.5):
        pool = Pool(slots, Share(part, headroom, at=1_000_000.0))
        assert pool.allowance.room() == 0


@given(st.lists(PARTS, min_size=1, max_size=4), SLOTS)
def test_the_smallest_of_several_shares_counts(parts: list[float], slots: int) -> None:
    pool = Pool(slots, Share(1.0))
    pool.shares = tuple(Share(part) for part in parts)  # type: ignore[assignment]  # a pool of several gates
    assert pool.allowance.limit() == pytest.approx(min(parts) * slots)


@given(PARTS, SLOTS, st.lists(st.integers(0, 3), max_size=40))
def test_finished_requests_make_room_again_at_once(part: float, slots: int, finishes: list[int]) -> None:
    pool = Pool(slots, Share(part))
    most = max(1, math.floor(part * slots + 1e-6))
    for count in finishes:
        pool.allowance.finished(min(count, pool.allowance.in_use))
        pool.allowance.started(pool.allowance.room())
        assert pool.allowance.in_use <= most


@pytest.mark.parametrize(("part", "slots", "whole"), [(0.3, 10, 3), (0.7, 10, 7), (0.1, 30, 3), (0.29, 100, 29)])
def test_binary_fractions_lose_no_slot(part: float, slots: int, whole: int) -> None:
    assert Pool(slots, Share(part)).allowance.room() == whole


def test_less_than_a_slot_is_one_request_at_a_time() -> None:
    pool = Pool(4, Share(0.05))
    assert pool.allowance.room() == 1
    pool.allowance.started()
    assert pool.allowance.room() == 0


@pytest.mark.parametrize(("allowed", "seconds"), [(0.25, 2.0), (0.5, 1.0), (0.1, 3.0), (0.9, 5.0)])
def test_below_one_slot_the_average_use_is_the_allowed_one(allowed: float, seconds: float) -> None:
    pool = Pool(10, Share(allowed / 10))
    busy = 0.0
    began = pool.clock.now
    for _ in range(50):
        while not pool.allowance.room():
            pool.clock.now += 0.01
        pool.allowance.started()
        pool.clock.now += seconds
        busy += seconds
        pool.allowance.finished()
    while not pool.allowance.room():
        pool.clock.now += 0.01
    assert busy / (pool.clock.now - began) == pytest.approx(allowed, rel=0.02)


def test_a_long_request_at_a_tiny_share_does_not_close_the_pool_for_hours() -> None:
    pool = Pool(10, Share(0.01))
    pool.allowance.started(pool.allowance.room())
    pool.clock.now += 600
    pool.allowance.finished()
    assert pool.allowance.room() == 0
    pool.clock.now += 61
    assert pool.allowance.room() == 1


def test_idle_time_saves_up_nothing_for_later() -> None:
    pool = Pool(10, Share(0.05))
    assert pool.allowance.room() == 1
    pool.clock.now += 10_000
    pool.allowance.started(pool.allowance.room())
    pool.clock.now += 10
    pool.allowance.finished()
    assert pool.allowance.room() == 0


def test_headroom_is_added_to_the_slots_that_the_reading_counted() -> None:
    pool = Pool(10, Share(0.3, headroom=0.3, at=1_000_000.0))
    pool.allowance.started(pool.allowance.room())
    assert pool.allowance.in_use == 3
    # The metric shows those three only after its lag, so an earlier reading allows no more.
    pool.clock.now += 5
    pool.shares = (Share(0.3, headroom=0.3, at=pool.clock.now),)
    assert pool.allowance.room() == 0
    pool.clock.now += 6
    pool.shares = (Share(0.3, headroom=0.3, at=pool.clock.now),)
    assert pool.allowance.room() == 3


def test_with_headroom_finished_requests_are_replaced_between_readings() -> None:
    pool = Pool(10, Share(0.2, headroom=0.2, at=1_000_000.0))
    pool.allowance.started(2)
    pool.clock.now += 20
    pool.shares = (Share(0.2, headroom=0.2, at=pool.clock.now),)
    assert pool.allowance.room() == 2
    pool.clock.now += 1
    pool.allowance.finished(2)
    assert pool.allowance.room() == 4


@given(st.lists(st.tuples(st.floats(0.01, 3), st.integers(-5, 5)), max_size=300), PARTS)
def test_headroom_never_exceeds_the_pool_or_its_reading(steps: list[tuple[float, int]], part: float) -> None:
    pool = Pool(20, Share(part, headroom=part, at=1_000_000.0), lag=4)
    history = [(pool.clock.now, 0)]
    for seconds, change in steps:
        pool.clock.now += seconds
        pool.shares = (Share(part, headroom=part, at=pool.clock.now),)
        if change > 0:
            pool.allowance.started(min(change, pool.allowance.room()))
        else:
            pool.allowance.finished(min(-change, pool.allowance.in_use))
        history.append((pool.clock.now, pool.allowance.in_use))
        counted = min(count for at, count in history if at > pool.clock.now - 4)
        most = max(pool.allowance.in_use, counted + part * 20 + 1e-9)
        assert pool.allowance.limit() <= min(20, most)


def test_inconsistent_counts_raise_value_error() -> None:
    allowance = Pool(3, Share(1.0)).allowance
    with pytest.raises(ValueError, match="more slots"):
        allowance.finished()
    with pytest.raises(ValueError, match="at least one slot"):
        Allowance(0, lambda: ())


def test_a_negative_headroom_does_not_replace_finished_requests_above_the_share() -> None:
    pool = Pool(10, Share(1.0))
    pool.allowance.started(8)
    pool.clock.now += 20
    pool.shares = (Share(0.1, headroom=-0.3, at=pool.clock.now),)
    assert pool.allowance.limit() == pytest.approx(5)
    pool.shares = (Share(0.1, headroom=-0.9, at=pool.clock.now),)
    assert pool.allowance.limit() == pytest.approx(1)


@pytest.mark.parametrize(("is_headroom", "least", "most"), [(True, 0.9, 1.0), (False, 0.4, 0.7)])
def test_how_many_idle_slots_are_used_if_the_metric_counts_queued_requests(
    is_headroom: bool, least: float, most: float
) -> None:
    """A pool of 100 places, 30 of them busy otherwise; closes at 0.95, read every 5 s, 5 s late."""
    pool = Pool(100, Share(0.0))
    ends: list[float] = []
    history: list[float] = []
    used: list[int] = []
    for step in range(4_000):
        pool.clock.now += 0.1
        pool.allowance.finished(sum(end <= pool.clock.now for end in ends))
        ends = [end for end in ends if end > pool.clock.now]
        history.append((30 + len(ends)) / 100)
        if step % 50 == 0:
            left = max(0.0, 0.95 - history[max(0, step - 50)])
            aim = left - 0.02 * 0.95
            share = Share(left, aim, pool.clock.now) if is_headroom else Share(left / 0.95)
            pool.shares = (share,)
        room = pool.allowance.room()
        pool.allowance.started(room)
        ends += [pool.clock.now + 5 + (step + number) % 10 for number in range(room)]
        assert len(ends) <= 70, "never in the way of the others"
        if step > 1_000:
            used.append(len(ends))
    below_threshold = 65
    assert least <= sum(used) / len(used) / below_threshold <= most


def test_with_headroom_a_full_pool_continues_less_its_excess() -> None:
    """A gate that closes completely at each reading over the threshold would oscillate."""
    pool = Pool(10, Share(1.0))
    pool.allowance.started(8)
    pool.clock.now += 20
    pool.shares = (Share(0.0, headroom=-0.1, at=pool.clock.now),)
    pool.clock.now += 1
    assert pool.allowance.limit() == pytest.approx(7)
    pool.allowance.finished(3)
    assert pool.allowance.room() == 2


def test_slots_that_the_gateway_lost_are_not_filled_again() -> None:
    pool = Pool(10, Share(1.0))
    pool.allowance.started(8)
    pool.clock.now += 20
    pool.shares = (Share(0.0, headroom=0.0, at=pool.clock.now, fewer=2),)
    pool.clock.now += 1
    pool.allowance.finished(2)
    assert pool.allowance.room() == 0
    pool.allowance.finished(1)
    assert pool.allowance.room() == 1


@given(st.integers(-50, 500), st.sampled_from([0.0, 0.25, 0.5]), st.integers(2, 12))
def test_the_shares_of_all_pollers_add_up_to_whole_slots(whole: int, fraction: float, pollers: int) -> None:
    parts = [ProcessShare(place, pollers).of(whole + fraction) for place in range(pollers)]
    assert sum(parts) == (whole or fraction), "less than one slot is for one of them"
    assert max(parts) - min(parts) <= 1


@given(PARTS, st.integers(1, 60), st.integers(1, 12))
def test_all_pollers_together_use_what_one_would(part: float, slots: int, pollers: int) -> None:
    """Counts only requests that start: an idle pool."""
    rooms = [
        Allowance(slots, lambda: (Share(part),), own_share=partial(ProcessShare, index, pollers)).room()
        for index in range(pollers)
    ]
    assert sum(rooms) == Allowance(slots, lambda: (Share(part),)).room()


def test_a_poller_waits_for_slots_of_its_share_that_others_still_use() -> None:
    ours = ProcessShare(1, 2, elsewhere=10)
    allowance = Allowance(10, lambda: (Share(1.0),), own_share=lambda: ours)
    assert allowance.room() == 0
    ours = ProcessShare(1, 2, elsewhere=7)
    assert allowance.room() == 3
    ours = ProcessShare(1, 2, elsewhere=0)
    assert allowance.room() == 5


def test_a_poller_without_a_known_share_starts_no_request() -> None:
    for shares in ((), (Share(1.0),), (Share(1.0, headroom=1.0),)):
        unknown = ProcessShare(is_known=False)
        assert Allowance(10, lambda: shares, own_share=lambda: unknown).room() == 0  # noqa: B023 - used at once


def test_headroom_is_shared_in_whole_slots_on_top_of_used_ones() -> None:
    for place, limit in ((0, 5), (1, 5), (2, 6)):
        clock = Clock()
        ours = ProcessShare(place, 3)
        share = Share(0.0, headroom=0.08, at=clock.now)
        allowance = Allowance(50, lambda: (share,), own_share=lambda: ours, clock=clock)  # noqa: B023 - used at once
        allowance.started(4)
        clock.now += 20
        share = Share(0.0, headroom=0.08, at=clock.now)
        clock.now += 1
        assert allowance.limit() == limit


def test_slots_in_use_stay_counted_when_the_limits_change() -> None:
    pool = Pool(10, Share(1.0))
    pool.allowance.started(4)
    pool.allowance.change(5, lambda: (Share(1.0),))
    assert (pool.allowance.in_use, pool.allowance.room()) == (4, 1)
    pool.allowance.change(3, lambda: (Share(1.0),), own_share=lambda: ProcessShare(0, 1))
    assert pool.allowance.room() == 0
    pool.allowance.finished(2)
    assert pool.allowance.room() == 1


def test_a_later_headroom_is_added_to_the_slots_in_use() -> None:
    pool = Pool(10, Share(1.0))
    pool.allowance.started(5)
    pool.allowance.change(10, lambda: (Share(0.0, headroom=0.2, at=1_000_000.0, lag_seconds=0.0),))
    assert pool.allowance.room() == 2
