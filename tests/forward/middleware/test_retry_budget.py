"""Retries are limited to a share of the final results, plus one per second."""

from __future__ import annotations

import random

import pytest

from handlers.forward.middleware.breaker import RetryBudget


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("error_share", "most_calls"), [(0.1, 1.2), (0.3, 1.3), (0.6, 1.3), (0.95, 1.3)])
def test_calls_for_each_request_stay_few_in_any_mix_of_failures(error_share: float, most_calls: float) -> None:
    time, chance = Time(), random.Random(1)
    budget = RetryBudget(0.25, time)
    requests, calls, waiting = 40_000, 0, 0
    for _ in range(requests):
        time.now += 0.001
        attempts = 1
        if waiting and budget.spend(1):
            waiting, attempts = waiting - 1, 2
        for _ in range(attempts):
            calls += 1
            if chance.random() < error_share:
                waiting += 1
            else:
                budget.earn()
    assert calls / requests <= most_calls


def test_without_final_results_one_retry_per_second_is_allowed() -> None:
    time = Time()
    budget = RetryBudget(0.25, time)
    while budget.spend(1):
        pass
    spent = 0
    for _ in range(600):
        time.now += 0.1
        spent += budget.spend(1)
    assert 59 <= spent <= 60


def test_saved_retries_are_limited() -> None:
    time = Time()
    budget = RetryBudget(0.25, time)
    time.now = 1e6
    spent = 0
    while budget.spend(1):
        spent += 1
    assert spent == 100


def test_later_retries_leave_room_for_earlier_ones() -> None:
    """Ten late ones a second want more than there is; each first retry finds room."""
    time = Time()
    budget = RetryBudget(0.25, time)
    late = refused = 0
    for number in range(6_000):
        time.now += 0.1
        late += budget.spend(2 + number % 30)
        refused += number % 100 == 99 and not budget.spend(1)
    assert refused == 0
    assert 500 <= late <= 700
