"""The order of turns: equal shares, strict lanes, rotation within a lane, and ageing."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.contract.errors import InvalidSetting
from handlers.contract.request import Request
from handlers.poller.priority import (
    Candidate,
    LaneOptions,
    Merge,
    RandomRobin,
    TierPriority,
    build_merge,
    check_objectives,
    in_lane,
)


def claimed(merge: Merge, candidates: list[Candidate], waiting: Counter[str], slots: int, now: float) -> Counter[str]:
    """Use the turns like the poller: claim, then continue with the remaining slots."""
    got: Counter[str] = Counter()
    for turn in merge.turns(candidates, slots, now):
        left = slots - got.total()
        if left <= 0:
            break
        count = min(turn.most, left, waiting[turn.queue])
        merge.asked(turn.queue, now)
        waiting[turn.queue] -= count
        got[turn.queue] += count
    return got


candidates_lists = st.lists(
    st.builds(
        Candidate,
        queue=st.sampled_from("abcdef"),
        lane=st.integers(0, 5),
        room=st.one_of(st.none(), st.integers(0, 20)),
    ),
    unique_by=lambda one: one.queue,
    max_size=6,
)
merges = st.sampled_from([RandomRobin(random.Random(1)), TierPriority(), TierPriority(ageing_seconds=3)])


@given(merges, candidates_lists, st.integers(1, 50), st.lists(st.integers(0, 40), min_size=6, max_size=6))
def test_every_slot_that_can_be_used_is_used_and_no_gate_is_passed(
    merge: Merge, candidates: list[Candidate], slots: int, depths: list[int]
) -> None:
    waiting = Counter(dict(zip("abcdef", depths, strict=True)))
    able = sum(min(waiting[c.queue], slots if c.room is None else c.room) for c in candidates)
    got = claimed(merge, candidates, waiting, slots, now=0)
    assert got.total() == min(slots, able)
    for one in candidates:
        assert one.room is None or got[one.queue] <= one.room


def test_random_robin_gives_each_queue_an_equal_share() -> None:
    merge = RandomRobin(random.Random(1))
    candidates = [Candidate(name) for name in "abc"]
    got = claimed(merge, candidates, Counter(a=100, b=100, c=100), 9, now=0)
    assert got == {"a": 3, "b": 3, "c": 3}


def test_random_robin_gives_unused_slots_of_one_queue_to_the_others() -> None:
    merge = RandomRobin(random.Random(1))
    got = claimed(merge, [Candidate(name) for name in "abc"], Counter(a=100, b=1), 9, now=0)
    assert got == {"a": 8, "b": 1, "c": 0}


def test_random_robin_prefers_no_queue_if_slots_become_free_one_by_one() -> None:
    merge = RandomRobin(random.Random(1))
    total: Counter[str] = Counter()
    for _ in range(3_000):
        total += claimed(merge, [Candidate(name) for name in "abc"], Counter(a=9, b=9, c=9), 1, now=0)
    assert all(900 < total[name] < 1_100 for name in "abc")


def test_a_lower_lane_gets_the_slots_that_higher_lanes_leave() -> None:
    candidates = [Candidate("batch", 5), Candidate("now", 0), Candidate("later", 1)]
    got = claimed(TierPriority(), candidates, Counter(batch=100, now=3, later=2), 8, now=0)
    assert got == {"now": 3, "later": 2, "batch": 3}


def test_without_ageing_lanes_are_strict() -> None:
    merge = TierPriority()
    candidates = [Candidate("batch", 5), Candidate("now", 0)]
    for second in range(1_000):
        got = claimed(merge, candidates, Counter(batch=100, now=100), 4, now=second)
        assert got == {"now": 4}


def test_with_ageing_a_lane_moves_once_in_its_time_and_no_faster() -> None:
    merge = TierPriority(ageing_seconds=10)
    candidates = [Candidate("batch", 5), Candidate("later", 4), Candidate("now", 0)]
    total: Counter[str] = Counter()
    for second in range(1_000):
        total += claimed(merge, candidates, Counter(batch=100, later=100, now=100), 4, now=second)
    assert total["batch"] == total["later"] == 99
    assert total["now"] == 4_000 - 2 * 99


def test_queues_within_a_lane_take_turns() -> None:
    merge = TierPriority()
    candidates = [Candidate("b", 2), Candidate("a", 2), Candidate("c", 2)]
    order = []
    for _ in range(6):
        order += list(claimed(merge, candidates, Counter(a=9, b=9, c=9), 1, now=0))
    assert order == ["a", "b", "c", "a", "b", "c"]


def test_a_queue_whose_gate_has_no_room_is_not_polled() -> None:
    for merge in (RandomRobin(), TierPriority()):
        turns = merge.turns([Candidate("a", room=0), Candidate("b", room=2)], 5, now=0)
        assert [(turn.queue, turn.most) for turn in turns] == [("b", 2)]


def test_policies_are_named_and_unknown_ones_stop_the_start() -> None:
    assert isinstance(build_merge("random-robin", "pools[0].merge_policy"), RandomRobin)
    assert isinstance(build_merge("tier-priority", "x", ageing_seconds=5), TierPriority)
    with pytest.raises(InvalidSetting, match="random-robin or tier-priority"):
        build_merge("fifo", "pools[0].merge_policy")
    with pytest.raises(ValueError, match="above 0"):
        TierPriority(ageing_seconds=0)


def labelled(**labels: str) -> Request:
    return Request(id="r", deadline=1e9, payload=b"{}", labels=labels)


def test_objective_and_priority_of_the_lane_are_sent_if_configured() -> None:
    request = labelled(classification="reserved", tier="async")
    assert in_lane(request, LaneOptions()) is request
    stamped = in_lane(request, LaneOptions({"reserved-async": "soon"}, has_priority_header=True))
    assert (stamped.objective, stamped.priority) == ("soon", 1)
    unnamed = in_lane(labelled(), LaneOptions({"reserved-async": "soon"}, has_priority_header=True))
    assert (unnamed.objective, unnamed.priority) == ("", 5)
    by_another_label = in_lane(labelled(sla="interactive"), LaneOptions(has_priority_header=True, tier_label="sla"))
    assert by_another_label.priority == 3


def test_an_objective_for_a_lane_that_does_not_exist_stops_the_start() -> None:
    check_objectives({"overflow-batch": "x"}, "lane_objectives")
    with pytest.raises(InvalidSetting, match="reserved-interactive"):
        check_objectives({"batch": "x"}, "lane_objectives")
