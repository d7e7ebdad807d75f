"""A followed clock shows another computer's time, whatever the local clock shows."""

from __future__ import annotations

import importlib
import inspect
import logging
import pkgutil
import time as computer

import pytest

from handlers import gates
from handlers.clock import FollowedClock
from handlers.telemetry.dependencies import SkewWatch
from handlers.telemetry.logs import get_logger


class Time:
    """Two clocks of one computer, set by hand."""

    def __init__(self, local: float = 1_000_000.0) -> None:
        self.steady = 50.0
        self.local = local

    def pass_by(self, seconds: float) -> None:
        """Advance both clocks."""
        self.steady += seconds
        self.local += seconds

    def followed(self) -> FollowedClock:
        """A clock on these two."""
        return FollowedClock(lambda: self.steady, lambda: self.local)


def test_without_an_observation_the_local_clock_counts() -> None:
    time = Time()
    assert time.followed().now() == 1_000_000.0


def test_a_change_of_the_local_clock_does_not_change_the_followed_one() -> None:
    time = Time()
    clock = time.followed()
    clock.observe(500.0, clock.started())
    time.pass_by(10)
    time.local += 7_200
    assert clock.now() == 510.0
    assert clock.skew_seconds == 1_000_010.0 + 7_200 - 510.0


def test_a_slow_answer_does_not_replace_an_exact_one() -> None:
    time = Time()
    clock = time.followed()
    clock.observe(500.0, clock.started())
    started_at = clock.started()
    time.pass_by(8)
    clock.observe(500.0, started_at)  # sent at once, arrived after 8 s: a large reply over a slow link
    assert clock.now() == 508.0


def test_a_server_whose_clock_is_set_is_followed_at_once() -> None:
    time = Time()
    clock = time.followed()
    clock.observe(500.0, clock.started())
    clock.observe(900.0, clock.started())
    assert clock.now() == 900.0


def test_the_latest_time_in_a_message_counts() -> None:
    """Messages are delayed: none proves an earlier time than a previous one."""
    time = Time(local=5_000.0)
    clock = time.followed()
    clock.observe_sent(1_000.0)
    clock.observe_sent(970.0)
    assert clock.now() == 1_000.0
    time.pass_by(601)
    clock.observe_sent(1_500.0)
    assert clock.now() == 1_500.0


@pytest.mark.parametrize(("local", "deadline"), [(1_000.0, 1_060.0), (1_003.0, 1_060.0), (8_200.0, 8_260.0)])
def test_a_deadline_is_converted_only_if_the_clocks_differ(local: float, deadline: float) -> None:
    clock = Time(local).followed()
    clock.observe_sent(1_000.0)
    assert clock.local_deadline(1_060.0) == deadline


def test_a_message_from_the_future_shows_that_the_local_clock_is_behind() -> None:
    clock = Time(1_000.0).followed()
    clock.observe_at_least(900.0)
    assert clock.skew_seconds == 0.0
    clock.observe_at_least(4_600.0)
    assert clock.skew_seconds == -3_600.0


def test_start_and_end_of_a_clock_skew_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    time = Time()
    clock = time.followed()
    watch = SkewWatch(clock, get_logger("test"), "redis")
    with caplog.at_level(logging.INFO):
        watch.check()
        clock.observe(time.local + 20, clock.started())
        watch.check()
        watch.check()
        time.local += 20
        watch.check()
    assert [record.message for record in caplog.records] == ["clock skew detected", "clock skew ended"]


def test_no_gate_measures_a_duration_by_a_clock_that_can_be_set() -> None:
    """Else a clock that is set back keeps an old reading, or a spread of retries, in force for that time."""
    names = [found.name for found in pkgutil.walk_packages(gates.__path__, "handlers.gates.")]
    members = [member for name in names for member in vars(importlib.import_module(name)).values()]
    classes = {member for member in members if inspect.isclass(member) and not issubclass(member, Exception)}
    settable = {
        f"{cls.__name__}.{name}"
        for cls in classes
        if cls.__module__.startswith("handlers.gates.")
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.default is computer.time
    }
    assert settable == set()
