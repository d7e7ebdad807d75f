"""Pauses while a dependency is down: they grow, they are jittered, they end at a cap."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from handlers.poller.patience import Patience


@given(draws=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=40))
def test_each_pause_is_the_upper_half_of_its_ceiling(draws: list[float]) -> None:
    given = iter(draws)
    patience = Patience(0.05, 2.0, lambda: next(given))
    for n in range(len(draws)):
        ceiling = min(2.0, 0.05 * 2**n)
        assert ceiling / 2 <= patience.next_seconds() <= ceiling


def test_success_brings_back_the_first_pause() -> None:
    patience = Patience(1.0, 60.0, lambda: 0.0)
    assert [patience.next_seconds() for _ in range(3)] == [0.5, 1.0, 2.0]
    patience.reset()
    assert patience.next_seconds() == 0.5


def test_an_outage_of_an_hour_costs_at_most_one_try_a_second() -> None:
    """No busy loop: the least pauses of 3,600 tries last longer than an hour."""
    patience = Patience(draw=lambda: 0.0)
    assert sum(patience.next_seconds() for _ in range(3_610)) >= 3_600


def test_it_knows_whether_the_last_try_failed() -> None:
    patience = Patience()
    seen = [patience.is_tried]
    patience.next_seconds()
    seen.append(patience.is_tried)
    patience.reset()
    assert [*seen, patience.is_tried] == [False, True, False]


async def test_a_pause_is_waited_for() -> None:
    patience = Patience(0.001, 0.002, lambda: 0.0)
    await patience.pause()
    assert patience.is_tried
